"""Make beam_vectors.npz: beam search with a seeded tiny T5 in transformers. Needs torch and transformers.

python -m tests.decoding.make_vectors
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.decoding.beam_reference import CASES, CONFIG, ask, weights
from tests.model.make_vectors import reference_model


def main() -> None:
    model = reference_model(CONFIG, weights())
    # The most frequent token ends answers. So some answers end early, some end late, and some do not end.
    tokens, _ = ask(model, CASES[0], eos=127)
    ids, counts = np.unique(tokens[tokens > 2], return_counts=True)
    eos = int(ids[np.argsort(counts)[-2]])
    vectors = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
               "eos": np.array(eos)}  # fmt: skip
    for index, case in enumerate(CASES):
        tokens, scores = ask(model, case, eos)
        vectors |= {f"tokens_{index}": tokens.astype(np.int16), f"scores_{index}": scores}
        print(case, (tokens == eos).any(axis=-1).tolist(), tokens[0, :2].tolist(), scores[0])
    path = pathlib.Path(__file__).with_name("beam_vectors.npz")
    np.savez_compressed(path, **vectors)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
