"""Generate: targets for inputs, from a run's newest checkpoint.

    python -m t5lite.generate --checkpoint runs/tiny --input 'The <extra_id_0> sat on the mat.'
    python -m t5lite.generate --checkpoint runs/tiny_lm --input 'Return the' --temperature 0.8 --seed 1
    python -m t5lite.generate --checkpoint runs/task --input_file questions.txt > answers.txt

One text a line, from --input, --input_file or standard input; one answer a line, in the same order, with line breaks
within it as \\n. A network that was fine-tuned on pairs answers; one pre-trained with span corruption fills in the
blanks; a language model goes on.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite import cli
from t5lite.config import load_json
from t5lite.data.rows import clipped
from t5lite.data.tokenizer import Tokenizer, load_tokenizer
from t5lite.decoding.generate import generate
from t5lite.errors import UserError
from t5lite.model.build import make_model
from t5lite.objectives.catalogue import make_objective
from t5lite.training.sharding import make_mesh
from t5lite.training.start import load_params
from t5lite.training.trainer import batch_shapes
from t5lite.vocabulary import EOS

BATCH_SIZE = 16


class Generator:
    """A run's newest checkpoint, ready to generate. `texts` to answers, in order."""

    def __init__(self, workdir: Path):
        config = load_json(workdir / "config.json")
        self.tokenizer: Tokenizer = load_tokenizer(str(workdir), 0, ())
        vocabulary = self.tokenizer.vocabulary
        self.objective = make_objective(config.objective, config.model.architecture, vocabulary)
        self.model = make_model(config.model, vocabulary)
        mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
        batch = batch_shapes(self.objective, 2, vocabulary.table)
        self.params, self.step = load_params(workdir, self.model, batch, mesh)
        self.num_valid_ids = self.objective.num_valid_ids(vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """The tokens that the model reads: closed by EOS where the objective does so; a language model is to go on.

        What was trained on pairs reads as many as a pair's inputs had, as in evaluation.
        """
        ids = self.tokenizer.encode(text, specials=True)
        if not self.objective.closes_inputs:
            return ids
        ids = np.append(ids, EOS).astype(np.int32)
        return clipped(ids, self.objective.inputs_length) if self.objective.rows == "pairs" else ids

    def __call__(self, texts: Sequence[str], max_new_tokens: int, seed: int = 0, **sampling: Any) -> Iterator[dict]:
        """{"input", "output", "tokens", "logprob"} of each text. A text's answer depends on its place and `seed`."""
        for start in range(0, len(texts), BATCH_SIZE):
            chunk = texts[start : start + BATCH_SIZE]
            encoded = [self.encode(text) for text in chunk]
            # Lengths in powers of two: few programs to compile, whatever the lengths of the texts.
            width = 1 << max(max(map(len, encoded)) - 1, 15).bit_length()
            inputs = np.zeros((len(chunk), width), np.int32)
            for row, ids in zip(inputs, encoded, strict=True):
                row[: len(ids)] = ids
            places = jnp.arange(start, start + len(chunk))
            keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.key(seed), place))(places)
            tokens, logprobs = generate(
                self.model,
                self.params,
                inputs,
                np.array([len(ids) for ids in encoded], np.int32),
                max_new_tokens=max_new_tokens,
                num_valid_ids=self.num_valid_ids,
                keys=keys,
                prefix_attention=self.objective.prefix_attention,
                **sampling,
            )
            for text, ids, logprob in zip(chunk, np.asarray(tokens), np.asarray(logprobs), strict=True):
                ids = ids[ids > 0].tolist()
                output = self.tokenizer.decode(ids)
                yield {"input": text, "output": output, "tokens": ids, "logprob": float(logprob)}


def _read(arguments: Any) -> list[str]:
    if arguments.input is not None:
        return [arguments.input]
    try:
        source = sys.stdin if arguments.input_file is None else arguments.input_file.open(encoding="utf-8")
        with source:
            return [line.rstrip("\r\n") for line in source]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {arguments.input_file or 'standard input'}: {error}") from error


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Answer each text."""
    parser = cli.parser("generate", __doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--checkpoint", "--workdir"):
        group.add_argument(flag, dest="workdir", type=Path, help="the workdir of a run")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--input", help="one text")
    texts.add_argument("--input_file", type=Path, help="a file with a text a line; default: standard input")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token, always")
    parser.add_argument("--top_k", type=int, default=0, help="sample from the k likeliest tokens; 0: from all")
    parser.add_argument("--top_p", type=float, default=1.0, help="sample from the fewest tokens of this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help='a line {"input", "output", "tokens", "logprob"} a text')
    arguments = parser.parse_args(argv)
    cli.start_jax()
    generator = Generator(arguments.workdir)
    sampling = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    for answer in generator(_read(arguments), arguments.max_new_tokens, arguments.seed, **sampling):
        # Of several answers each keeps to its line; a single one may have as many as it wants.
        text = answer["output"] if arguments.input is not None else answer["output"].replace("\n", "\\n")
        print(json.dumps(answer) if arguments.json else text)


if __name__ == "__main__":
    main()
