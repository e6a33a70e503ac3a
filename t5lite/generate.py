"""Generate: targets for inputs, from a run's newest checkpoint or another.

    python -m t5lite.generate --checkpoint runs/tiny --input 'The <extra_id_0> sat on the mat.'
    python -m t5lite.generate --checkpoint runs/tiny_lm --input 'Return the' --temperature 0.8 --seed 1
    python -m t5lite.generate --checkpoint runs/task --input_file questions.txt > answers.txt

One text a line, from --input, --input_file or standard input; one answer a line, in the same order, with line breaks
within it as \\n. A network that was fine-tuned on pairs answers; one pre-trained with span corruption fills in the
blanks; a language model goes on. An encoder puts the likeliest piece in place of each [MASK] of a text, or says the
label of a text, or the tag of each word.
"""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite import cli
from t5lite.checks import LENGTH, STEPS, in_range
from t5lite.data.build import pieces_of_words
from t5lite.data.rows import clipped
from t5lite.decoding.generate import generate, padded
from t5lite.decoding.settings import Settings
from t5lite.errors import UserError
from t5lite.model.transformer import parameter_shapes
from t5lite.objectives.batch import Batch
from t5lite.released import open_model
from t5lite.training import hosts
from t5lite.training.sharding import make_mesh
from t5lite.training.start import load_params
from t5lite.vocabulary import CLS, MASK, SEP

BATCH_SIZE = 16


class Generator:
    """A run's newest checkpoint, ready to generate. `texts` to answers, in order; an encoder's need no sampling.

    step, average: which checkpoints instead of the newest, as for `load_params`.
    """

    def __init__(self, place: str | Path, step: str | None = None, average: int = 1):
        opened = open_model(place)
        self.tokenizer, self.objective, self.model = opened.tokenizer, opened.objective, opened.model
        mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
        self.params, self.step = load_params(place, parameter_shapes(self.model.config), mesh, step, average)
        self.allowed = self.objective.allowed(self.tokenizer.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """The tokens that the model reads: closed by EOS where the objective does so; a language model is to go on.

        What was trained on pairs reads as many as a pair's inputs had, as in evaluation.
        """
        ids = self.tokenizer.encode(text, specials=True)
        if not self.objective.closes_inputs:
            return ids
        front = np.array([] if self.objective.bos is None else [self.objective.bos], np.int32)
        ids = np.append(ids, self.tokenizer.vocabulary.eos).astype(np.int32)
        if self.objective.rows == "pairs":
            ids = clipped(ids, self.objective.inputs_length - len(front))
        return np.concatenate([front, ids])

    def __call__(self, texts: Sequence[str], max_new_tokens: int, seed: int = 0, **sampling: Any) -> Iterator[dict]:
        """{"input", "output", "tokens", "logprob"} of each text. A text's answer depends on its place and `seed`.

        Several hosts take batches in turn, and host 0 yields the answers of all.
        """
        for first in range(0, len(texts), BATCH_SIZE * hosts.count()):
            start = first + BATCH_SIZE * hosts.index()
            chunk = texts[start : start + BATCH_SIZE]
            if self.objective.architecture == "encoder":
                answers = [self._understood(text) for text in chunk]
            else:
                answers = self._generated(chunk, start, max_new_tokens, seed, sampling) if chunk else []
            for each in hosts.to_primary(answers):
                yield from each

    def _generated(
        self, chunk: Sequence[str], start: int, max_new_tokens: int, seed: int, sampling: dict
    ) -> list[dict]:
        """The answers to at most BATCH_SIZE texts, of which the first is the `start`-th of all."""
        encoded, vocabulary = [self.encode(text) for text in chunk], self.tokenizer.vocabulary
        inputs, lengths = padded(encoded)
        places = jnp.arange(start, start + len(inputs))
        keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.key(seed), place))(places)
        generated = generate(
            self.model,
            self.params,
            inputs,
            lengths,
            Settings(max_new_tokens=max_new_tokens, **sampling),
            keys=keys,
            allowed=self.allowed,
            prefix_attention=self.objective.prefix_attention,
            eos=vocabulary.eos,
            start=vocabulary.start,
            prepend_start=self.tokenizer.begins_with_start,
        )
        answers = []
        for text, tokens, lengths, _, scores in zip(chunk, *jax.device_get(generated), strict=False):
            ids = tokens[0, : lengths[0]].tolist()
            output = self.tokenizer.decode(ids)
            answers.append({"input": text, "output": output, "tokens": ids, "logprob": float(scores[0])})
        return answers

    def _understood(self, text: str) -> dict:
        """What an encoder makes of a text. Raises UserError for one that it cannot take."""
        vocabulary, heads, length = self.tokenizer.vocabulary, self.objective.heads, self.objective.inputs_length
        words = text.split()
        by_word = pieces_of_words(self.tokenizer, [words])[0] if heads.tagger else [self.tokenizer.encode(text, True)]
        pieces = np.concatenate([np.zeros(0, np.int32), *by_word])
        pieces = pieces[: length - 2] if heads.classifier else pieces  # as in evaluation
        ids = np.concatenate([[vocabulary.specials[CLS]], pieces, [vocabulary.specials[SEP]]]).astype(np.int32)
        if len(ids) > length:
            raise UserError(f"the text has {len(ids)} tokens, the network reads {length}: {_shortened(text)}")
        outputs = self._outputs(np.pad(ids, (0, length - len(ids))), np.arange(length) < len(ids))
        if heads.vocabulary:
            places = np.flatnonzero(ids == vocabulary.specials[MASK])
            if len(places) == 0:
                raise UserError(f"a masked language model fills in {MASK}, and the text has none: {_shortened(text)}")
            allowed = ~vocabulary.table.is_special[: vocabulary.pieces]
            scores = np.where(allowed, outputs.tokens[places, : vocabulary.pieces], -np.inf)
            ids[places] = scores.argmax(axis=-1)
            return self._answer(text, self.tokenizer.decode(ids[1:-1]), ids[1:-1], outputs.tokens[places], ids[places])
        names = self.objective.labels
        if heads.classifier:
            best = outputs.labels.argmax()
            return self._answer(text, names[best], [best], outputs.labels[None], [best])
        places = np.cumsum([1, *map(len, by_word)])[:-1]
        tags = outputs.tokens[places].argmax(axis=-1)
        said = " ".join(f"{word}/{names[tag]}" for word, tag in zip(words, tags, strict=True))
        return self._answer(text, said, tags, outputs.tokens[places], tags)

    @functools.cached_property
    def _outputs(self) -> Any:
        """(inputs [L], which of them are no padding) -> Outputs of one example, as NumPy arrays."""

        @jax.jit
        def apply(params: Any, inputs: jax.Array, real: jax.Array) -> Any:
            batch = Batch(inputs[None], real[None], inputs=inputs[None], inputs_segment_ids=real[None].astype(np.int32))
            return jax.tree.map(lambda x: x[0], self.model.apply({"params": params}, batch, method="outputs"))

        return lambda *arrays: jax.device_get(apply(self.params, *arrays))

    @staticmethod
    def _answer(text: str, output: str, tokens: Any, logits: np.ndarray, chosen: Any) -> dict:
        """The answer and its log-probability: of `chosen` [n] under `logits` [n, C]."""
        log_probs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), chosen]
        return {"input": text, "output": output, "tokens": list(map(int, tokens)), "logprob": float(log_probs.sum())}


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _read(arguments: Any) -> list[str]:
    place = "--input" if arguments.input is not None else arguments.input_file or "standard input"
    try:
        if arguments.input is not None:
            texts = [arguments.input]
        else:
            source = sys.stdin if arguments.input_file is None else arguments.input_file.open(encoding="utf-8")
            with source:
                texts = [line.rstrip("\r\n") for line in source]
        for text in texts:
            text.encode()  # arguments and standard input may hold bytes that are not UTF-8 as half surrogate pairs
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {place}: {error}") from error
    return texts


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Answer each text."""
    parser = cli.parser("generate", __doc__)
    cli.add_checkpoint(parser)
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--input", help="one text")
    texts.add_argument("--input_file", type=Path, help="a file with a text a line; default: standard input")
    parser.add_argument("--max_new_tokens", type=in_range(int, 1, LENGTH), default=64)
    parser.add_argument(
        "--temperature", type=in_range(float, 0, 1e6), default=0.0, help="0: the likeliest token, always"
    )
    parser.add_argument(
        "--top_k", type=in_range(int, 0, STEPS), default=0, help="sample from the k likeliest tokens; 0: from all"
    )
    parser.add_argument(
        "--top_p", type=in_range(float, 0, 1), default=1.0, help="sample from the fewest tokens of this probability"
    )
    parser.add_argument("--seed", type=in_range(int, 0, STEPS), default=0)
    parser.add_argument("--json", action="store_true", help='a line {"input", "output", "tokens", "logprob"} a text')
    cli.add_hosts(parser)
    arguments = parser.parse_args(argv)
    with cli.jax_started(arguments):
        generator = Generator(arguments.checkpoint, arguments.step, arguments.average)
        texts = hosts.from_primary(_read(arguments) if hosts.is_primary() else None)
        sampling = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
        for answer in generator(texts, arguments.max_new_tokens, arguments.seed, **sampling):
            # Of several answers each keeps to its line; a single one may have as many as it wants.
            text = answer["output"] if arguments.input is not None else answer["output"].replace("\n", "\\n")
            print(json.dumps(answer) if arguments.json else text)


if __name__ == "__main__":
    main()
