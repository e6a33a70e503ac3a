"""Objectives: pure functions (key, row, token table) -> Example, and the sizes that follow from their settings.

An objective says what rows it wants of the data (`rows`, `window`, `with_eos`, `segments`) and how long its sides are;
all of it is known before the first step, so a setting that cannot work is refused when the objective is made, by
`catalogue.make_objective`.

    objective = make_objective(config.objective, "encoder_decoder", vocabulary)
    batch = make_batch(objective, keys, rows, table)          # inside the jitted step
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch, Example, Layout, layout_for
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import PAD, TokenTable, Vocabulary

Array = jax.Array
Row = Mapping[str, Array]
Make = Callable[[Array, Row, TokenTable], Example]
Fields = Mapping[str, Any]


VOCABULARY = "vocabulary"  # the name of that output among those of all heads


class Head(NamedTuple):
    """An output of the model beside the vocabulary. What its answers mean is for tasks/ to say.

    name: of its parameters, and of its answers in a Batch.
    size: how many numbers it gives.
    each: what it gives them for: "token" of the inputs, or the whole "example".
    dropout: whether activations are dropped before it.
    """

    name: str
    size: int
    each: str
    dropout: bool = True


class Heads(NamedTuple):
    """All outputs of a model: the `vocabulary` for each token, and `others`."""

    vocabulary: bool = True
    others: tuple[Head, ...] = ()

    @property
    def pooled(self) -> bool:
        """Whether a head answers for whole examples."""
        return any(head.each == "example" for head in self.others)


OF_TOKENS = Heads()


class TooFewSentinels(UserError):
    """needed: by the objective `name`, of which the tokenizer has `present`."""

    def __init__(self, name: str, needed: int, present: int):
        super().__init__(
            f"config.tokenizer.sentinels: {name} with these lengths needs {needed} sentinels, the tokenizer has "
            f"{present}; give it more, or shorten inputs_length"
        )
        self.needed = needed


class Expected(NamedTuple):
    """What noise comes to on average; None where no formula is known. density: the share of a window's tokens.
    span_length: tokens of a span.
    """

    density: float | None = None
    span_length: float | None = None


NO_NOISE = Expected()


class Member(NamedTuple):
    """One of a mixture's objectives. share: of the examples, on average."""

    name: str
    share: float
    expected: Expected


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective with its sizes resolved, laid out for one architecture.

    rows: "windows" of `window` tokens, "pairs", or "answers": inputs of at most `window` tokens with the answers that
    the first of the other heads has to give. with_eos: the EOS tokens between documents belong to a window.
    segments: a window brings the ids of its documents. second_window: and another document's window.
    inputs_length, targets_length: the sides of the example. predicted: the most places of an encoder's inputs that are
    to be predicted; None: all. heads: what the model has to answer.
    decoder_length: of both sides together on a decoder; None: their sum. predicts_text: the loss is over plain text in
    its order, so bits per byte mean something. closes_inputs: EOS ends them. targets_hold_specials: sentinels and
    specials are learnt too. prefix_attention: a decoder's inputs see each other in both directions. expected: of the
    noise. members: a mixture's, in the order of `Example.member`. start, bos: the vocabulary's, see there; bos is None
    on a decoder, and on an encoder.
    """

    name: str
    architecture: str
    make: Make
    rows: str
    window: int
    inputs_length: int
    targets_length: int
    decoder_length: int | None = None
    with_eos: bool = False
    segments: bool = False
    predicts_text: bool = False
    closes_inputs: bool = True
    targets_hold_specials: bool = False
    prefix_attention: bool = False
    expected: Expected = NO_NOISE
    members: tuple[Member, ...] = ()
    second_window: bool = False
    predicted: int | None = None
    labels: tuple[str, ...] = ()
    heads: Heads = OF_TOKENS
    start: int = PAD
    bos: int | None = None

    def allowed(self, vocabulary: Vocabulary) -> np.ndarray:
        """Bool [rows]: the ids that may be generated. Text and EOS; sentinels and specials where targets hold them."""
        allowed = ~vocabulary.table.is_special
        if self.targets_hold_specials:
            allowed[[*range(vocabulary.pieces, vocabulary.size), *vocabulary.specials.values()]] = True
        if vocabulary.unknown is not None:
            allowed[vocabulary.unknown] = False
        allowed[vocabulary.eos] = True
        return allowed

    @property
    def answered(self) -> Head | None:
        """The head for the answers that rows bring; None where rows bring none."""
        return self.heads.others[0] if self.rows == "answers" else None

    @property
    def lengths(self) -> tuple[int, int]:
        """(encoder, decoder) tokens of an example; a decoder takes both sides one after the other."""
        if self.architecture == "decoder":
            return 0, self.decoder_length or self.inputs_length + self.targets_length
        return self.inputs_length, self.targets_length if self.architecture == "encoder_decoder" else 0

    @property
    def layout(self) -> Layout:
        """From an Example to a Batch."""
        return layout_for(
            self.architecture, length=self.lengths[1], prefix_attention=self.prefix_attention, start=self.start
        )

    def row_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the int32 arrays that a batch of rows consists of."""
        if self.rows == "windows":
            asked = {"tokens": True, "segment_ids": self.segments, "others": self.second_window}
            return {name: (batch_size, self.window) for name, is_asked in asked.items() if is_asked}
        if self.rows == "pairs":
            lengths = {"inputs": self.inputs_length, "targets": self.targets_length}
            lengths |= {f"{name}_segment_ids": length for name, length in lengths.items()}
            return {name: (batch_size, length) for name, length in lengths.items()}
        sentences = (batch_size, self.window)
        answers = sentences if self.answered.each == "token" else (batch_size,)
        return {"inputs": sentences, "inputs_segment_ids": sentences, "answers": answers}


class Kind(NamedTuple):
    """How objectives of one name are made.

    window: (fields, vocabulary) -> tokens of the window that fills `inputs_length`. build: (fields, vocabulary, window)
    -> the Objective. uses: (fields) -> those on which it depends, beside its name and `inputs_length`.
    specials: (fields) -> the special tokens that it needs.
    evaluated_as: (fields) -> those by which every run with this objective is evaluated, so that losses compare.
    standards: names of the objectives by which its runs compare with those of other objectives.
    data: "text", "pairs" of texts, or "tags": words with a tag each.

    Beside those of the config, `fields` has "architecture", "labels", the known ones of the data, and "answer", the
    head for the answers that rows bring.
    """

    architectures: tuple[str, ...]
    window: Callable[[Fields, Vocabulary], int]
    build: Callable[[Fields, Vocabulary, int], Objective]
    uses: Callable[[Fields], tuple[str, ...]]
    specials: Callable[[Fields], tuple[str, ...]] = lambda fields: ()
    evaluated_as: Callable[[Fields], Fields] = lambda fields: fields
    standards: tuple[str, ...] = ()
    data: str = "text"


def bos_of(fields: Fields, vocabulary: Vocabulary) -> int | None:
    """The id in front of both sides of an example. A decoder has its start there already."""
    return vocabulary.bos if fields["architecture"] == "encoder_decoder" else None


def example_keys(seed_key: Array, step: Array, batch_size: int) -> Array:
    """Keys [B] of the examples of `step`, folded from the place of each in the whole run."""
    places = step.astype(jnp.uint32) * jnp.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    return jax.vmap(lambda place: jax.random.fold_in(seed_key, place))(places)


def make_batch(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Batch:
    """The Batch of `rows` (leading axis B) with one key a row."""
    return jax.vmap(lambda key, row: objective.layout(objective.make(key, row, table)))(keys, rows)


def make_examples(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Example:
    """The Examples of `rows`, as `preview` shows them."""
    return jax.vmap(lambda key, row: objective.make(key, row, table))(keys, rows)
