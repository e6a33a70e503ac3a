"""The interface between data and models: `Example`, `Batch`, and the layouts that turn an Example into a Batch.

An objective makes an `Example` from one row. A layout turns the Example into the `Batch` that an architecture reads.
The two sides of an Example are its inputs and its targets. Here are two packed pairs, (5 6 → 7) and (8 → 9). EOS (1)
closes each side; padding is 0:

    Example  inputs               5 6 1 8 1 0        targets              7 1 9 1 0
             inputs_segment_ids   1 1 1 2 2 0        targets_segment_ids  1 1 2 2 0

    encoder-decoder
             inputs               5 6 1 8 1 0        decoder_inputs       0 7 0 9 0
             inputs_segment_ids   1 1 1 2 2 0        targets              7 1 9 1 0
             inputs_positions     0 1 2 0 1 0        weights              1 1 1 1 0
                                                     targets_segment_ids  1 1 2 2 0
                                                     targets_positions    0 1 0 1 0
    decoder  (each segment: its inputs, then its targets)
             decoder_inputs       0 5 6 1 7 0 8 1 9 0 0
             targets              5 6 1 7 1 8 1 9 1 0 0
             weights              0 0 0 1 1 0 0 1 1 0 0
             targets_segment_ids  1 1 1 1 1 2 2 2 2 0 0
             targets_positions    0 1 2 3 4 0 1 2 3 0 0
             prefix_mask          1 1 1 1 0 1 1 1 0 0 0    (only with attention over the prefix)

The shift to the right restarts at each segment. A segment's decoder inputs begin with the vocabulary's `start` (here 0,
as in T5). So a segment never sees the last token of the segment before. On a decoder, the prefix is the start token and
all inputs. The loss starts at the position of the last input token, because its output predicts the first target.

In an encoder's example, `targets` and `weights` are aligned with `inputs`. The model has to predict the tokens with
weight 1. Here are two sentences, 5 6 7 and 8 9, and the tokens 6 and 9 have weight 1. [CLS] is 20, [SEP] 21, [MASK] 22:

    encoder  inputs       20  5 22  7 21  8  9 21
             targets      20  5  6  7 21  8  9 21
             weights       0  0  1  0  0  0  1  0     (9 is one of the 10 % that stay unchanged)
             token_types   0  0  0  0  0  1  1  1     (only with two sentences)
             answers      {"next_sentence": 1}   (1: 8 9 is not the continuation of 5 6 7)
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from t5lite.objectives.noise import Noise
from t5lite.system.vocabulary import PAD

Array = jax.Array


@flax.struct.dataclass
class Example:
    """The result of an objective for one row. Lengths are static: a shorter side is padded with 0 at its end.

    inputs [L], targets [T]: int32. weights [T]: float32, the loss weight of each target.
    inputs_segment_ids [L], targets_segment_ids [T]: int32, from 1; 0 on padding. None: one segment without padding.
    noise: which tokens of the window are noise; None for an objective without noise.
    ordered [window]: int32, the window's tokens in a new order, if the objective reorders them before it chooses the
        noise. None: the tokens keep their order.
    member: int32, the index of the mixture's objective that made the example.
    token_types [L]: int32, which of two parts a token belongs to. Encoder only.
    answers: {head name: the true answers, see `objective.Head`}. With `answer_places`: one for each of P texts.
    answer_places [P]: int32, where a head reads each of P texts in the row, in the last stack's output. The places of
        missing texts have no meaning. None: the row has one text.
    """

    inputs: Array
    targets: Array
    weights: Array
    inputs_segment_ids: Array | None = None
    targets_segment_ids: Array | None = None
    noise: Noise | None = None
    ordered: Array | None = None
    member: Array | None = None
    token_types: Array | None = None
    answers: dict[str, Array] = flax.struct.field(default_factory=dict)
    answer_places: Array | None = None


@flax.struct.dataclass
class Batch:
    """The input of a model; the module's docstring shows one. Ids, segments and positions are int32, weights float32.

    inputs, inputs_segment_ids, inputs_positions [B, L]: the encoder's side; None on a decoder alone.
    decoder_inputs [B, T]: None on an encoder alone.
    targets, weights: [B, T] if the model has a decoder. On an encoder alone: [B, L], or [B, P] with `predicted`.
    targets_segment_ids, targets_positions [B, T]: the decoder's side; None on an encoder alone.
    prefix_mask [B, T]: bool, the positions of a decoder that see each other in both directions. None: no position
        sees a later position.
    token_types [B, L]: as in Example; None where all are 0.
    answers: {head name: [B, …]}, as in Example. With `answer_places` [B, P]: {head name: [B, P, …]}.
    predicted [B, P]: the indices of an encoder's inputs that targets and weights belong to. None: targets and weights
        belong to all inputs.

    If segment ids are None, each row is one segment without padding. If positions are None, they count from 0. So a
    batch that needs no segment mask has no segment mask.
    """

    targets: Array
    weights: Array
    inputs: Array | None = None
    inputs_segment_ids: Array | None = None
    inputs_positions: Array | None = None
    decoder_inputs: Array | None = None
    targets_segment_ids: Array | None = None
    targets_positions: Array | None = None
    prefix_mask: Array | None = None
    token_types: Array | None = None
    answers: dict[str, Array] = flax.struct.field(default_factory=dict)
    answer_places: Array | None = None
    predicted: Array | None = None

    def keep_valid(self, valid: Array) -> "Batch":
        """Return the batch with weights 0 and without answers in the rows where `valid`, bool [B], is False."""

        def keep(answers: Array) -> Array:
            missing = -1 if jnp.issubdtype(answers.dtype, jnp.integer) else jnp.nan
            return jnp.where(valid.reshape(-1, *[1] * (answers.ndim - 1)), answers, missing)

        return self.replace(weights=self.weights * valid[:, None], answers=jax.tree.map(keep, self.answers))


Layout = Callable[[Example], Batch]


def segment_starts(segment_ids: Array) -> Array:
    """Return bool [L]: True at the first token of each segment, and at the first token of the padding."""
    return jnp.concatenate([jnp.ones(1, bool), segment_ids[1:] != segment_ids[:-1]])


def positions_in_segments(segment_ids: Array | None) -> Array | None:
    """Return int32 [L]: each token's distance from the start of its segment; 0 on padding. None if the ids are None."""
    if segment_ids is None:
        return None
    index = jnp.arange(segment_ids.shape[0], dtype=jnp.int32)
    start = jax.lax.cummax(jnp.where(segment_starts(segment_ids), index, 0))
    return jnp.where(segment_ids > 0, index - start, 0)


def shift_right(tokens: Array, segment_ids: Array | None, start: int = PAD) -> Array:
    """Return the decoder's inputs for the targets `tokens` [T]: the tokens, moved one place to the right.

    Each segment begins with `start`. Padding is 0.
    """
    shifted = jnp.concatenate([jnp.full(1, start, tokens.dtype), tokens[:-1]])
    if segment_ids is None:
        return shifted
    return jnp.where(segment_ids == 0, PAD, jnp.where(segment_starts(segment_ids), start, shifted))


def encoder_decoder(example: Example, *, start: int = PAD) -> Batch:
    """Return the Batch of an encoder-decoder: inputs go to the encoder, targets to the decoder."""
    return Batch(
        inputs=example.inputs,
        inputs_segment_ids=example.inputs_segment_ids,
        inputs_positions=positions_in_segments(example.inputs_segment_ids),
        decoder_inputs=shift_right(example.targets, example.targets_segment_ids, start),
        targets=example.targets,
        weights=example.weights,
        targets_segment_ids=example.targets_segment_ids,
        targets_positions=positions_in_segments(example.targets_segment_ids),
        answers=example.answers,
        answer_places=example.answer_places,
    )


def _fill_segments(tokens: Array, segment_ids: Array | None) -> Array:
    return jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids


def decoder(example: Example, *, length: int, prefix_attention: bool, start: int = PAD) -> Batch:
    """Return the Batch of a decoder: for each segment its inputs, then its targets. The loss is on targets.

    Args:
      length: the length of the row. All tokens that are not padding must fit. It is not used if there are no inputs, or
        if each side is one segment without padding: then the row is the inputs, followed by the targets.
      prefix_attention: whether the inputs of a segment see each other in both directions.
      start: the first id of each segment of the decoder's inputs.
    """
    num_inputs, num_targets = example.inputs.shape[0], example.targets.shape[0]
    if num_inputs == 0 or (example.inputs_segment_ids is None and example.targets_segment_ids is None):
        tokens, segment_ids = jnp.concatenate([example.inputs, example.targets]), example.targets_segment_ids
        weights = jnp.concatenate([jnp.zeros(num_inputs, jnp.float32), example.weights])
        in_inputs = jnp.arange(num_inputs + num_targets) < num_inputs
    else:
        sides = (_fill_segments(example.inputs, example.inputs_segment_ids),
                 _fill_segments(example.targets, example.targets_segment_ids))  # fmt: skip
        segment_ids = jnp.concatenate(sides)
        in_targets = jnp.concatenate([jnp.zeros_like(sides[0]), jnp.ones_like(sides[1])])
        last = jnp.iinfo(jnp.int32).max
        order = jnp.argsort(jnp.where(segment_ids > 0, 2 * segment_ids + in_targets, last), stable=True)[:length]
        tokens = jnp.concatenate([example.inputs, example.targets])[order]
        weights = jnp.concatenate([jnp.zeros(num_inputs, jnp.float32), example.weights])[order]
        segment_ids, in_inputs = segment_ids[order], (in_targets[order] == 0) & (segment_ids[order] > 0)
    prefix_mask = None
    if prefix_attention:
        # The start token of a segment belongs to its prefix, and the shift moves every input one place to the right.
        prefix_mask = shift_right(in_inputs, None) | (segment_starts(_fill_segments(tokens, segment_ids)) & in_inputs)
    return Batch(
        decoder_inputs=shift_right(tokens, segment_ids, start),
        targets=tokens,
        weights=weights,
        targets_segment_ids=segment_ids,
        targets_positions=positions_in_segments(segment_ids),
        prefix_mask=prefix_mask,
        answers=example.answers,
        answer_places=example.answer_places,
    )


def encoder(example: Example) -> Batch:
    """Return the Batch of an encoder: targets and weights are aligned with the inputs."""
    return Batch(
        inputs=example.inputs,
        inputs_segment_ids=example.inputs_segment_ids,
        inputs_positions=positions_in_segments(example.inputs_segment_ids),
        targets=example.targets,
        weights=example.weights,
        token_types=example.token_types,
        answers=example.answers,
        answer_places=example.answer_places,
    )


def select_predicted(batch: Batch, limit: int) -> Batch:
    """Return an encoder's batch with `limit` targets in each row: first targets with a weight, then with weight 0.

    The model then computes logits for these targets alone. A masked language model predicts a seventh of all tokens,
    and logits are a large part of the work.
    """
    places = jnp.argsort(batch.weights <= 0, axis=1, stable=True)[:, :limit].astype(jnp.int32)
    targets, weights = (jnp.take_along_axis(side, places, axis=1) for side in (batch.targets, batch.weights))
    return batch.replace(targets=targets, weights=weights, predicted=places)


def layout_for(architecture: str, *, length: int = 0, prefix_attention: bool = False, start: int = PAD) -> Layout:
    """Return the layout of an architecture. A decoder uses all arguments, an encoder-decoder only `start`."""
    if architecture == "decoder":
        return functools.partial(decoder, length=length, prefix_attention=prefix_attention, start=start)
    return functools.partial(encoder_decoder, start=start) if architecture == "encoder_decoder" else encoder
