"""Objectives: pure functions (key, row, token table) -> Example, and the sizes that follow from their settings.

An objective says which rows it needs from the data (`rows`, `window`, `with_eos`, `segments`), and how long its inputs
and targets are. All sizes are known before the first step. So `catalogue.make_objective` can refuse settings that
cannot work.

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


VOCABULARY = "vocabulary"  # the name of the model's output over the vocabulary; other heads have other names


class Head(NamedTuple):
    """An output of the model other than the vocabulary. tasks/ defines the meaning of its answers.

    name: the name of its parameters, and of its answers in a Batch.
    size: the number of values in an output.
    each: "token": one output for each token of the inputs; "example": one output for the whole example.
    dropout: whether there is dropout before the head.
    answer_shape: the shape of an example's true answer. None: () for an example, [L] for each token.
    answer_dtype: "int32", or "float32"; where an answer is missing, it is -1, or NaN.
    """

    name: str
    size: int
    each: str
    dropout: bool = True
    answer_shape: tuple[int, ...] | None = None
    answer_dtype: str = "int32"

    def has_answer_for_each_token(self) -> bool:
        """Return whether each token has an answer of its own."""
        return self.each == "token" and self.answer_shape is None


class Heads(NamedTuple):
    """All outputs of a model.

    vocabulary: whether the model has logits over the vocabulary.
    others: its other heads.
    """

    vocabulary: bool = True
    others: tuple[Head, ...] = ()

    @property
    def pooled(self) -> bool:
        """Whether a head answers for whole examples."""
        return any(head.each == "example" for head in self.others)


VOCABULARY_ONLY = Heads()  # the outputs of a model that answers with tokens alone


class TooFewSentinels(UserError):
    """The tokenizer has `present` sentinels, but the objective `name` needs `needed` sentinels."""

    def __init__(self, name: str, needed: int, present: int):
        super().__init__(
            f"config.tokenizer.sentinels: {name} with these lengths needs {needed} sentinels, but the tokenizer has "
            f"{present}; set this field to {needed} or more, or lower config.objective.inputs_length"
        )
        self.needed = needed


class Expected(NamedTuple):
    """Averages of the noise; None if no formula is known.

    density: the share of a window's tokens that are noise. span_length: the number of noise tokens in a span.
    """

    density: float | None = None
    span_length: float | None = None


NO_NOISE = Expected()


class Member(NamedTuple):
    """One of a mixture's objectives. share: its average share of the examples."""

    name: str
    share: float
    expected: Expected


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective for one architecture, with all sizes.

    make: (key, row, token table) -> Example.
    rows: the kind of rows. "windows": `window` tokens. "pairs": two texts. "answers": inputs of at most `window`
        tokens, and the answers for the first of `heads.others`. "conversations": tokens, of which some are trained.
    inputs_length, targets_length: the number of tokens of the example's inputs and targets.
    decoder_length: on a decoder, the number of tokens of inputs and targets together. None: the sum of both lengths.
    with_eos: whether a window includes the EOS tokens between documents.
    segments: whether a window has segment ids, one for each document.
    predicts_text: whether the loss is over plain text in its original order. Only then bits per byte have a meaning.
    closes_inputs: whether the inputs end in EOS.
    targets_hold_specials: whether targets contain sentinels and specials, so that the model learns to generate them.
    prefix_attention: whether a decoder's inputs see each other in both directions.
    expected: averages of the noise.
    members: a mixture's objectives, in the order of `Example.member`.
    second_window: whether a row also has a window of another document.
    predicted: the largest number of tokens to predict in an encoder's inputs. None: all tokens.
    labels: the labels of the data, if its targets are a closed set of labels.
    heads: the outputs that the model needs.
    max_texts: the largest number of texts in a row of `rows` "answers". Above 1, the rows hold `front` before each
        text, and have as many tokens as the model reads.
    front: the ids before each text of a row of `rows` "answers".
    start, bos: see `Vocabulary`. bos is None on a decoder and on an encoder.
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
    heads: Heads = VOCABULARY_ONLY
    max_texts: int = 1
    front: tuple[int, ...] = ()
    start: int = PAD
    bos: int | None = None

    def allowed_ids(self, vocabulary: Vocabulary) -> np.ndarray:
        """Return bool [rows]: the ids that may be generated: text, EOS, and the sentinels and specials of targets."""
        allowed = ~vocabulary.table.is_special
        if self.targets_hold_specials:
            allowed[[*range(vocabulary.pieces, vocabulary.size), *vocabulary.specials.values()]] = True
        if vocabulary.unknown is not None:
            allowed[vocabulary.unknown] = False
        allowed[vocabulary.eos] = True
        return allowed

    @property
    def answer_head(self) -> Head | None:
        """The head for the answers that rows contain; None if rows contain no answers."""
        return self.heads.others[0] if self.rows == "answers" else None

    @property
    def front_length(self) -> int:
        """The number of tokens that stand before the inputs of rows with answers, such as [CLS]."""
        return len(self.front)

    @property
    def has_answers(self) -> bool:
        """Whether the end of a row is a known answer, a text, to what stands before it."""
        return self.rows in ("pairs", "conversations")

    @property
    def lengths(self) -> tuple[int, int]:
        """The lengths (encoder, decoder), in tokens. A decoder alone reads the inputs, then the targets."""
        if self.architecture == "decoder":
            return 0, self.decoder_length or self.inputs_length + self.targets_length
        return self.inputs_length, self.targets_length if self.architecture == "encoder_decoder" else 0

    @property
    def layout(self) -> Layout:
        """The function that turns an Example into a Batch."""
        return layout_for(
            self.architecture, length=self.lengths[1], prefix_attention=self.prefix_attention, start=self.start
        )

    def row_structs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return {name: shape and dtype} of the arrays in a batch of rows."""
        if self.rows == "windows":
            needed = {"tokens": True, "segment_ids": self.segments, "others": self.second_window}
            lengths = {name: self.window for name, is_needed in needed.items() if is_needed}
        elif self.rows == "pairs":
            lengths = {"inputs": self.inputs_length, "targets": self.targets_length}
            lengths |= {f"{name}_segment_ids": length for name, length in lengths.items()}
        elif self.rows == "conversations":
            lengths = dict.fromkeys(("targets", "targets_segment_ids", "trained"), self.targets_length)
        else:
            length = self.window if self.max_texts == 1 else self.window + self.front_length
            lengths = dict.fromkeys(("inputs", "inputs_segment_ids"), length)
        structs = {name: jax.ShapeDtypeStruct((batch_size, length), jnp.int32) for name, length in lengths.items()}
        if (head := self.answer_head) is not None:
            shape = (self.window,) if head.has_answer_for_each_token() else head.answer_shape or ()
            shape = shape if self.max_texts == 1 else (self.max_texts, *shape)
            structs["answers"] = jax.ShapeDtypeStruct((batch_size, *shape), head.answer_dtype)
        return structs


class Kind(NamedTuple):
    """How to make the objectives of one name.

    architectures: the architectures on which the objective has a meaning.
    window: (fields, vocabulary) -> the number of tokens in a window that fills `inputs_length`.
    build: (fields, vocabulary, window) -> the Objective.
    uses: (fields) -> names of the fields that the objective depends on, without `name` and `inputs_length`.
    specials: (fields) -> the special tokens that the objective needs.
    evaluation_fields: (fields) -> the fields for evaluation, so that the losses of runs with this objective compare.
    standards: names of additional objectives of evaluation, which compare runs with different objectives.
    data: "text", "chat" (conversations), or "pairs": inputs with known answers. tasks/table.py says which answers.

    `fields` has the fields of the config's `objective`, and three more: "architecture"; "labels", the data's labels if
    they are known; "answer_head", the head for the answers that rows contain.
    """

    architectures: tuple[str, ...]
    window: Callable[[Fields, Vocabulary], int]
    build: Callable[[Fields, Vocabulary, int], Objective]
    uses: Callable[[Fields], tuple[str, ...]]
    specials: Callable[[Fields], tuple[str, ...]] = lambda fields: ()
    evaluation_fields: Callable[[Fields], Fields] = lambda fields: fields
    standards: tuple[str, ...] = ()
    data: str = "text"


def choose_bos(fields: Fields, vocabulary: Vocabulary) -> int | None:
    """Return the id in front of the inputs and of the targets, or None. Only for an encoder-decoder."""
    return vocabulary.bos if fields["architecture"] == "encoder_decoder" else None


def require_window(fields: Fields, window: int) -> int:
    """Return `window`, the number of tokens that fit into `inputs_length`. Raises UserError if it is below 2."""
    if window < 2:
        raise UserError(
            f"config.objective.inputs_length: {fields['inputs_length']} is too short for a window of 2 tokens; raise it"
        )
    return window


def example_keys(seed_key: Array, step: Array, batch_size: int) -> Array:
    """Return the PRNG keys [B] of the examples of `step`, from the seed and the examples' indices in the whole run."""
    places = step.astype(jnp.uint32) * jnp.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    return jax.vmap(lambda place: jax.random.fold_in(seed_key, place))(places)


def make_batch(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Batch:
    """Return the Batch of `rows`. The first axis of `rows` is B, and `keys` has one key for each row."""
    return jax.vmap(lambda key, row: objective.layout(objective.make(key, row, table)))(keys, rows)


def make_examples(objective: Objective, keys: Array, rows: Row, table: TokenTable) -> Example:
    """Return the Examples of `rows`. The first axis of `rows` is B, and `keys` has one key for each row."""
    return jax.vmap(lambda key, row: objective.make(key, row, table))(keys, rows)
