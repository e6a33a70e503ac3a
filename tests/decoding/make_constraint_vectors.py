"""Make constraint_vectors.npz: answers under constraints from transformers. Needs torch and transformers.

python -m tests.decoding.make_constraint_vectors
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.decoding.constraint_reference import CASES, MODELS, ask, rows_of, weights
from tests.interop.make_vectors import reference_model


def main() -> None:
    vectors = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    for name, config_json in MODELS.items():
        model = reference_model(config_json, weights(name))
        free = ask(model, name, {}, eos=2)
        # An id in the middle of an answer ends answers, so that the shortest length matters.
        vectors[f"{name}/eos"] = eos = np.array(free[0][0][0, 2] if name == "encoder_decoder" else free[1][0][0, 6])
        print(name, "eos", eos, [free[row][0][0].tolist() for row in free])
        for index, case in enumerate(CASES):
            answers = ask(model, name, case, int(eos))
            for row in rows_of(name, case):
                tokens, scores = answers[row]
                vectors[f"{name}/{index}/{row}/tokens"] = tokens.astype(np.int16)
                if scores is not None:
                    vectors[f"{name}/{index}/{row}/scores"] = scores
                print(case, row, tokens[0].tolist(), scores)
    path = pathlib.Path(__file__).with_name("constraint_vectors.npz")
    np.savez_compressed(path, **vectors)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
