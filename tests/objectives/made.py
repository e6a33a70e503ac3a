"""Shared by the tests of the objectives: vocabularies, windows of distinct tokens, and examples of these windows.

objective = build("span_corruption", inputs_length=64)
for seen in examples(objective, windows(objective, 8)):
    seen.inputs, seen.targets                    # without padding; `examples` checks that padding is at the end
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from t5lite.config import base_config
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.language_models import FIM_TOKENS
from t5lite.objectives.noise import Noise
from t5lite.objectives.objective import Objective, make_examples
from t5lite.system.vocabulary import MASK, PAD, UNKNOWN, Vocabulary

FIELDS = base_config().objective.to_dict()
STOP = UNKNOWN + 1  # this piece, and every tenth piece after it, ends a sentence
SPECIALS = (MASK, *FIM_TOKENS, "[NLU]", "[S2S]", "[NLG]")
FALSE_ALARM = 1e-4  # the chance, over seeds, that a test of a distribution fails although the code is right


@functools.cache
def vocabulary(
    pieces: int = 903, sentinels: int = 100, specials: tuple[str, ...] = SPECIALS, word_length: int = 1
) -> Vocabulary:
    """Return a vocabulary. With `word_length`, ids that it divides start a word, and other ids continue the word."""
    made = Vocabulary.synthetic(pieces, sentinels, specials)
    ids, text = np.arange(made.rows), ~made.table.is_special
    table = dataclasses.replace(
        made.table, starts_word=text & (ids % word_length == 0), ends_sentence=text & (ids % 10 == STOP)
    )
    return dataclasses.replace(made, table=table)


def is_stop(token: int) -> bool:
    """Return whether the token ends a sentence in the vocabularies of these tests."""
    return token % 10 == STOP


PLAIN = vocabulary()


def build(
    name: str, architecture: str = "encoder_decoder", vocab: Vocabulary = PLAIN, inputs_length: int = 64, **settings
) -> Objective:
    """Return an objective. The same arguments give the same object, so that it is compiled once."""
    return _build_cached(name, architecture, vocab, json.dumps({"inputs_length": inputs_length, **settings}))


@functools.cache
def _build_cached(name: str, architecture: str, vocab: Vocabulary, settings: str) -> Objective:
    return make_objective(FIELDS | {"name": name} | json.loads(settings), architecture, vocab)


def windows(objective: Objective, count: int, seed: int = 0, vocab: Vocabulary = PLAIN) -> np.ndarray:
    """Return int32 [count, window]: pieces of text. A window has no piece twice."""
    rng = np.random.default_rng(seed)
    ordinary = np.arange(UNKNOWN + 1, vocab.pieces, dtype=np.int32)
    return np.stack([rng.permutation(ordinary)[: objective.window] for _ in range(count)])


@functools.cache
def _compile(objective: Objective, vocab: Vocabulary):
    # Two functions: objectives that differ only in their layout share the first one, which takes long to compile.
    return (
        jax.jit(lambda keys, rows: make_examples(objective, keys, rows, vocab.table)),
        jax.jit(jax.vmap(objective.layout)),
    )


def rows_of(objective: Objective, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows. Each window is one document, and its second window is the window before it."""
    given = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "others": np.roll(tokens, 1, axis=0)}
    return {name: given[name] for name in objective.row_structs(len(tokens))}


def make(objective: Objective, tokens: np.ndarray, seed: int = 0, vocab: Vocabulary = PLAIN) -> Example:
    """Return the examples of the windows `tokens`, as NumPy arrays."""
    return make_with(objective, jax.random.split(jax.random.key(seed), len(tokens)), tokens, vocab)


def make_with(objective: Objective, keys: jax.Array, tokens: np.ndarray, vocab: Vocabulary = PLAIN) -> Example:
    """Return the examples of the windows `tokens`, as NumPy arrays. keys: one key for each window."""
    return jax.device_get(_compile(objective, vocab)[0](keys, rows_of(objective, tokens)))


def lay_out(objective: Objective, made: Example, vocab: Vocabulary = PLAIN) -> Batch:
    """Return the Batch of the examples `made`, as NumPy arrays."""
    return jax.device_get(_compile(objective, vocab)[1](made))


class ShownExample(NamedTuple):
    """One example: its window, its inputs and targets without padding, and its Batch."""

    window: list[int]
    inputs: list[int]
    targets: list[int]
    noise: Noise
    example: Example
    batch: Batch


def without_padding(side: np.ndarray, segment_ids: np.ndarray | None) -> list[int]:
    """Return the tokens of a side of one segment. Check that padding is only at the end, and that its ids are PAD."""
    if segment_ids is None:
        return side.tolist()
    count = int(segment_ids.sum())
    assert segment_ids.tolist() == [1] * count + [0] * (len(side) - count)
    assert (side[count:] == PAD).all()
    return side[:count].tolist()


def examples(objective: Objective, tokens: np.ndarray, seed: int = 0, vocab: Vocabulary = PLAIN) -> list[ShownExample]:
    """Return the example that `objective` makes from each of the windows `tokens`."""
    made = make(objective, tokens, seed, vocab)
    both = made, lay_out(objective, made, vocab)
    seen = []
    for i, window in enumerate(tokens):
        example, batch = jax.tree.map(lambda x: x[i], both)  # noqa: B023 - used at once
        inputs = without_padding(example.inputs, example.inputs_segment_ids)
        targets = without_padding(example.targets, example.targets_segment_ids)
        seen.append(ShownExample(window.tolist(), inputs, targets, example.noise, example, batch))
    return seen


def check_chances(observed: np.ndarray, chances: np.ndarray) -> None:
    """Check counts against the chances of all possible events, by a chi-square test."""
    observed, chances = np.asarray(observed, float), np.asarray(chances, float)
    assert abs(chances.sum() - 1) < 1e-9 and (chances * observed.sum() >= 5).all(), "the test itself is wrong"
    assert stats.chisquare(observed, chances * observed.sum()).pvalue > FALSE_ALARM


def check_uniform(values: np.ndarray, low: int, high: int) -> None:
    """Check that integers are uniform in [low, high)."""
    values = np.asarray(values)
    assert values.min() >= low and values.max() < high
    check_chances(np.bincount(values - low, minlength=high - low), np.full(high - low, 1 / (high - low)))


def check_share(count: int, total: int, chance: float) -> None:
    """Check that `count` of `total` independent events fits the chance of an event."""
    assert stats.binomtest(int(count), int(total), chance).pvalue > FALSE_ALARM, (count / total, chance)
