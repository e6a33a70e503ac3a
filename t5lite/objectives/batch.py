"""The one contract between data and models: `Example`, `Batch`, and the layouts that lead from one to the other.

An objective makes an `Example` of one row. A layout turns it into the `Batch` that an architecture eats. Two packed
pairs, (5 6 → 7) and (8 → 9), each side closed by EOS (1), padded with 0:

    Example  inputs               5 6 1 8 1 0        targets              7 1 9 1 0
             inputs_segment_ids   1 1 1 2 2 0        targets_segment_ids  1 1 2 2 0

    encoder-decoder
             inputs               5 6 1 8 1 0        decoder_inputs       0 7 0 9 0
             inputs_segment_ids   1 1 1 2 2 0        targets              7 1 9 1 0
             inputs_positions     0 1 2 0 1 0        weights              1 1 1 1 0
                                                     targets_segment_ids  1 1 2 2 0
                                                     targets_positions    0 1 0 1 0
    decoder  (inputs and targets of a segment follow each other)
             decoder_inputs       0 5 6 1 7 0 8 1 9 0 0
             targets              5 6 1 7 1 8 1 9 1 0 0
             weights              0 0 0 1 1 0 0 1 1 0 0
             targets_segment_ids  1 1 1 1 1 2 2 2 2 0 0
             targets_positions    0 1 2 3 4 0 1 2 3 0 0
             prefix_mask          1 1 1 1 0 1 1 1 0 0 0    (where attention over the prefix is asked for)

The decoder's shift restarts at each segment: it starts from the vocabulary's `start`, here 0 as in T5, and never sees
its neighbour's last token. The prefix of a decoder is the start token and all inputs; the loss is past it, from the
position of the last input on, whose output predicts the first target.

An encoder's example is made in place: `targets` and `weights` are aligned with `inputs`. Two sentences, 5 6 7 and 8 9,
in which 6 and 9 are to be predicted, with [CLS] 20, [SEP] 21, [MASK] 22:

    encoder  inputs       20  5 22  7 21  8  9 21
             targets      20  5  6  7 21  8  9 21
             weights       0  0  1  0  0  0  1  0     (9 is one of the tenth that keep their place)
             token_types   0  0  0  0  0  1  1  1     (where there are two sentences)
             answers      {"next_sentence": 1}   (1: 8 9 is not how 5 6 7 went on)
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
    """What an objective makes of one row. Lengths are static; a side that is shorter is padded with 0 at its end.

    inputs [L], targets [T]: int32. weights [T]: float32, the loss weight of each target.
    *_segment_ids: int32, from 1, 0 for padding; None says that the side is one segment without padding.
    noise: of the window; None where that has no meaning. ordered [window]: the tokens that it fell upon, where they
    were put in another order before. member: int32, which of a mixture's objectives made it.
    token_types [L]: int32, which of two parts a token belongs to. answers: {head: int32, of the whole example or [L]
    of its tokens}, -1 where there is none. Both an encoder's alone.
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


@flax.struct.dataclass
class Batch:
    """What a model eats; the module's docstring shows one. Ids, segments and positions are int32, weights float32.

    inputs, inputs_segment_ids, inputs_positions [B, L]: the encoder's side; None on a decoder.
    decoder_inputs [B, T]: None on an encoder. targets, weights [B, T].
    targets_segment_ids, targets_positions [B, T]: of the decoder's side; None on an encoder.
    prefix_mask [B, T]: bool, the positions of a decoder that see each other in both directions; None: causal.
    token_types [B, L]: as in an Example, of an encoder; None where all are 0. answers: {head: [B] or [B, L]}, likewise.
    predicted [B, P]: the places of an encoder's inputs that targets and weights, then [B, P], are for; None: for all.
    Segment ids of None say one segment without padding, positions of None count from 0: the attention mask of a
    batch that needs none is then never built.
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
    predicted: Array | None = None

    def only(self, valid: Array) -> "Batch":
        """Return the batch in which the rows that are not `valid`, bool [B], have no targets and no answers."""

        def keep(answers: Array) -> Array:
            return jnp.where(valid.reshape(-1, *[1] * (answers.ndim - 1)), answers, -1)

        return self.replace(weights=self.weights * valid[:, None], answers=jax.tree.map(keep, self.answers))


Layout = Callable[[Example], Batch]


def segment_starts(segment_ids: Array) -> Array:
    """Bool [L]: where a segment (or the padding) begins."""
    return jnp.concatenate([jnp.ones(1, bool), segment_ids[1:] != segment_ids[:-1]])


def positions_in_segments(segment_ids: Array | None) -> Array | None:
    """Int32 [L]: each token's distance from the start of its segment, 0 on padding; None for None."""
    if segment_ids is None:
        return None
    index = jnp.arange(segment_ids.shape[0], dtype=jnp.int32)
    start = jax.lax.cummax(jnp.where(segment_starts(segment_ids), index, 0))
    return jnp.where(segment_ids > 0, index - start, 0)


def shift_right(tokens: Array, segment_ids: Array | None, start: int = PAD) -> Array:
    """Decoder inputs for the targets `tokens` [T]: moved by one, `start` in front of each segment, 0 on padding."""
    shifted = jnp.concatenate([jnp.full(1, start, tokens.dtype), tokens[:-1]])
    if segment_ids is None:
        return shifted
    return jnp.where(segment_ids == 0, PAD, jnp.where(segment_starts(segment_ids), start, shifted))


def encoder_decoder(example: Example, *, start: int = PAD) -> Batch:
    """Inputs to the encoder, targets to the decoder."""
    return Batch(
        inputs=example.inputs,
        inputs_segment_ids=example.inputs_segment_ids,
        inputs_positions=positions_in_segments(example.inputs_segment_ids),
        decoder_inputs=shift_right(example.targets, example.targets_segment_ids, start),
        targets=example.targets,
        weights=example.weights,
        targets_segment_ids=example.targets_segment_ids,
        targets_positions=positions_in_segments(example.targets_segment_ids),
    )


def _segments(tokens: Array, segment_ids: Array | None) -> Array:
    return jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids


def decoder(example: Example, *, length: int, prefix_attention: bool, start: int = PAD) -> Batch:
    """Inputs and targets of each segment in a row of `length` tokens, enough for all that are not padding.

    The loss is on the targets. With `prefix_attention` the inputs of a segment see each other in both directions.
    """
    num_inputs, num_targets = example.inputs.shape[0], example.targets.shape[0]
    if num_inputs == 0 or (example.inputs_segment_ids is None and example.targets_segment_ids is None):
        tokens, segment_ids = jnp.concatenate([example.inputs, example.targets]), example.targets_segment_ids
        weights = jnp.concatenate([jnp.zeros(num_inputs, jnp.float32), example.weights])
        in_inputs = jnp.arange(num_inputs + num_targets) < num_inputs
    else:
        sides = (_segments(example.inputs, example.inputs_segment_ids),
                 _segments(example.targets, example.targets_segment_ids))  # fmt: skip
        segment_ids = jnp.concatenate(sides)
        in_targets = jnp.concatenate([jnp.zeros_like(sides[0]), jnp.ones_like(sides[1])])
        last = jnp.iinfo(jnp.int32).max
        order = jnp.argsort(jnp.where(segment_ids > 0, 2 * segment_ids + in_targets, last), stable=True)[:length]
        tokens = jnp.concatenate([example.inputs, example.targets])[order]
        weights = jnp.concatenate([jnp.zeros(num_inputs, jnp.float32), example.weights])[order]
        segment_ids, in_inputs = segment_ids[order], (in_targets[order] == 0) & (segment_ids[order] > 0)
    prefix_mask = None
    if prefix_attention:
        # The start token of a segment belongs to its prefix, and the shift moves every input by one.
        prefix_mask = shift_right(in_inputs, None) | (segment_starts(_segments(tokens, segment_ids)) & in_inputs)
    return Batch(
        decoder_inputs=shift_right(tokens, segment_ids, start),
        targets=tokens,
        weights=weights,
        targets_segment_ids=segment_ids,
        targets_positions=positions_in_segments(segment_ids),
        prefix_mask=prefix_mask,
    )


def encoder(example: Example) -> Batch:
    """Targets and weights aligned with the inputs."""
    return Batch(
        inputs=example.inputs,
        inputs_segment_ids=example.inputs_segment_ids,
        inputs_positions=positions_in_segments(example.inputs_segment_ids),
        targets=example.targets,
        weights=example.weights,
        token_types=example.token_types,
        answers=example.answers,
    )


def only_predicted(batch: Batch, most: int) -> Batch:
    """The batch of an encoder with the `most` places at most that have a weight, so that logits are made of no others.

    They are a seventh of all in a masked language model, and the logits a good part of the work.
    """
    places = jnp.argsort(batch.weights <= 0, axis=1, stable=True)[:, :most].astype(jnp.int32)
    targets, weights = (jnp.take_along_axis(side, places, axis=1) for side in (batch.targets, batch.weights))
    return batch.replace(targets=targets, weights=weights, predicted=places)


def layout_for(architecture: str, *, length: int = 0, prefix_attention: bool = False, start: int = PAD) -> Layout:
    """The layout of an architecture. `length` and `prefix_attention` concern a decoder only, `start` no encoder."""
    if architecture == "decoder":
        return functools.partial(decoder, length=length, prefix_attention=prefix_attention, start=start)
    return functools.partial(encoder_decoder, start=start) if architecture == "encoder_decoder" else encoder
