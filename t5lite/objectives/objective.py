"""Objectives: pure functions (key, row, token table) -> Example, and the sizes that follow from their settings.

Most denoisers are a line in `DENOISERS`: a mask, a rule for the inputs, a rule for the targets. An objective says
what rows it wants of the data (`rows`, `window`, `with_eos`, `segments`) and how long its sides are; all of it is known
before the first step, so a setting that cannot work is refused when the objective is made.

    objective = make_objective(config.objective, "encoder_decoder", vocabulary)
    batch = make_batch(objective, keys, rows, table)          # inside the jitted step
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5lite.errors import UserError, nearest
from t5lite.objectives import noise, rules
from t5lite.objectives.batch import Batch, Example, Layout, layout_for
from t5lite.objectives.lengths import corrupted_lengths, span_corruption_lengths
from t5lite.vocabulary import TokenTable, Vocabulary

Array = jax.Array
Row = Mapping[str, Array]
Make = Callable[[Array, Row, TokenTable], Example]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective with its sizes resolved.

    rows: "windows" of `window` tokens or "pairs". with_eos: the EOS tokens between documents belong to a window.
    segments: a window brings the ids of its documents. inputs_length, targets_length: the sides of the example.
    predicts_text: the loss is over plain text, so bits per byte mean something.
    """

    name: str
    make: Make
    layout: Layout
    rows: str
    window: int
    inputs_length: int
    targets_length: int
    with_eos: bool = False
    segments: bool = False
    predicts_text: bool = False

    def num_valid_ids(self, vocabulary: Vocabulary) -> int:
        """Ids from this one on are never generated: targets of denoisers alone hold sentinels and specials."""
        return vocabulary.rows if self.rows == "windows" and not self.predicts_text else vocabulary.pieces

    def lengths(self, architecture: str) -> tuple[int, int]:
        """(encoder, decoder) tokens of an example; a decoder takes both sides one after the other."""
        if architecture == "decoder":
            return 0, self.inputs_length + self.targets_length
        return self.inputs_length, self.targets_length if architecture == "encoder_decoder" else 0

    def row_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the int32 arrays that a batch of rows consists of."""
        if self.rows == "pairs":
            lengths = {"inputs": self.inputs_length, "targets": self.targets_length}
            lengths |= {f"{name}_segment_ids": length for name, length in lengths.items()}
        else:
            lengths = {"tokens": self.window} | ({"segment_ids": self.window} if self.segments else {})
        return {name: (batch_size, length) for name, length in lengths.items()}


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


class Denoiser(NamedTuple):
    """One objective of T5's family: what is noise, and what becomes of it on either side."""

    mask: Callable[[Array, int, int, int], Array]
    inputs: rules.Rule
    targets: rules.Rule


DENOISERS = {
    "span_corruption": Denoiser(
        noise.random_spans, rules.noise_span_to_unique_sentinel, rules.nonnoise_span_to_unique_sentinel
    ),
}


def _denoising(fields: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    density, mean_length = fields["noise_density"], fields["mean_noise_span_length"]
    if not 0 <= density < 1:
        raise UserError(f"config.objective.noise_density: must be in [0, 1), is {density}")
    if mean_length < 1:
        raise UserError(f"config.objective.mean_noise_span_length: must be at least 1, is {mean_length}")
    window, _ = span_corruption_lengths(fields["inputs_length"], density, mean_length)
    if window < 2:
        raise UserError(f"config.objective.inputs_length: {fields['inputs_length']} leaves no window of two tokens")
    num_noise, num_spans = noise.span_counts(window, density, mean_length)
    if max(num_spans, 1) > vocabulary.sentinels:
        raise UserError(
            f"config.tokenizer.sentinels: {fields['name']} with these lengths needs {num_spans} sentinels, "
            f"the tokenizer has {vocabulary.sentinels}; give it more, or shorten inputs_length"
        )
    denoiser = DENOISERS[fields["name"]]
    # Both sides are full: their lengths follow from the counts of the mask. At some settings the inputs fall short of
    # what was asked for by a token or more.
    inputs_length, targets_length = corrupted_lengths(window, density, mean_length)

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del table
        tokens = row["tokens"]
        mask = denoiser.mask(key, window, num_noise, num_spans)
        inputs, _ = rules.compact(*denoiser.inputs(tokens, mask, vocabulary.size), inputs_length, eos=True)
        targets, _ = rules.compact(*denoiser.targets(tokens, mask, vocabulary.size), targets_length, eos=True)
        return Example(inputs, targets, jnp.ones(targets_length, jnp.float32), noise_mask=mask)

    return dict(make=make, rows="windows", window=window, inputs_length=inputs_length, targets_length=targets_length)


def _causal_lm(fields: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    del vocabulary
    length = fields["inputs_length"]
    if fields["prefix_attention"]:
        raise UserError("config.objective.prefix_attention: causal_lm has no prefix; set it to False")
    if length < 2:
        raise UserError(f"config.objective.inputs_length: must be at least 2, is {length}")

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        empty = jnp.zeros(0, jnp.int32)
        return Example(empty, row["tokens"], jnp.ones(length, jnp.float32), None, row.get("segment_ids"))

    return dict(
        make=make,
        rows="windows",
        window=length,
        inputs_length=0,
        targets_length=length,
        with_eos=True,
        segments=fields["segments"],
        predicts_text=True,
    )


def _supervised(fields: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    del vocabulary
    inputs_length, targets_length = fields["inputs_length"], fields["targets_length"]
    if targets_length is None:
        raise UserError("config.objective.targets_length: supervised pairs need it; set it to a number of tokens")
    for name in ("inputs_length", "targets_length"):
        if fields[name] < 2:
            raise UserError(f"config.objective.{name}: must be at least 2, is {fields[name]}")

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        segment_ids = row["targets_segment_ids"]
        weights = (segment_ids > 0).astype(jnp.float32)
        return Example(row["inputs"], row["targets"], weights, row["inputs_segment_ids"], segment_ids)

    return dict(make=make, rows="pairs", window=0, inputs_length=inputs_length, targets_length=targets_length)


class Kind(NamedTuple):
    """How an objective is made, and the architectures on which it has meaning."""

    build: Callable[[Mapping[str, Any], Vocabulary], dict[str, Any]]
    architectures: tuple[str, ...]


OBJECTIVES = {
    **{name: Kind(_denoising, ("encoder_decoder", "decoder")) for name in DENOISERS},
    "causal_lm": Kind(_causal_lm, ("decoder",)),
    "supervised": Kind(_supervised, ("encoder_decoder", "decoder")),
}


def make_objective(fields: Mapping[str, Any], architecture: str, vocabulary: Vocabulary) -> Objective:
    """The objective that `fields` (a config's `objective`) describes, laid out for `architecture`.

    Raises UserError for an unknown name, an architecture on which it has no meaning, and settings that cannot work.
    """
    name = fields["name"]
    if name not in OBJECTIVES:
        raise UserError(f"config.objective.name: unknown objective {name!r}; {nearest(name, OBJECTIVES)}")
    kind = OBJECTIVES[name]
    if architecture not in kind.architectures:
        raise UserError(
            f"config.objective.name: {name} has no meaning on model.architecture={architecture!r}; "
            f"it works on {' and '.join(kind.architectures)}"
        )
    parts = kind.build(fields, vocabulary)
    length = parts["inputs_length"] + parts["targets_length"]
    layout = layout_for(architecture, length=length, prefix_attention=fields["prefix_attention"])
    return Objective(name=name, layout=layout, **parts)
