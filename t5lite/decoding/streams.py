"""Streams: answers that are generated together. The R streams of a row are beams, samples, or one greedy answer.

In shapes, R stands for the streams of a row, and M for max_new_tokens. All streams take each step together, and
`State.step` is the number of the step. A stream sees the slots of its row's prompt, which all streams share, and one
slot for each earlier step. If a beam continues another beam, it only copies the other beam's row of `visible_BxRxS`.
Keys and values are never moved.

    beam 0 and beam 1 after two steps; both continue beam 0 of step 0:        slots    prompt | 0 0 | 1 1
                                                                              beam 0    x x x | x . | x .
                                                                              beam 1    x x x | x . | . x
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from t5lite.decoding.ngrams import align_prompts, find_repeats
from t5lite.decoding.prefill import prefill
from t5lite.decoding.sampling import FORBIDDEN, choose_next_tokens, penalise
from t5lite.decoding.settings import Settings
from t5lite.model.stack import Cache
from t5lite.model.transformer import StepWeights, Transformer

Array = jax.Array


@flax.struct.dataclass
class Request:
    """The data that do not change while tokens are generated.

    allowed_BxV: bool, the ids that may be generated; B may be 1.
    numbers: {name: value} of the settings that are numbers.
    keys_B: a PRNG key for each row, to draw samples.
    forced_BxM, forced_lengths_B: the tokens with which the answers to each row must begin. None: no such tokens.
    first: int32 [], the id of token 1. None: no such rule. Here it only tells where `never_first_V` holds, and that the
        token adds 0 to a beam's score. `forced_BxM` makes it token 1.
    last: int32 [], the id of token max_new_tokens. None: no such rule.
    never_first_V: bool. Without `first`, ids that may not be token 1. With `first`, ids that may not be token 2. None:
        no such rule.
    """

    allowed_BxV: Array
    numbers: dict[str, Array]
    keys_B: Array | None = None
    forced_BxM: Array | None = None
    forced_lengths_B: Array | None = None
    first: Array | None = None
    last: Array | None = None
    never_first_V: Array | None = None

    def find_allowed(self, step: Array) -> Array:
        """Return bool [B or 1, V]: the ids that may be generated in `step` if no rule forces one."""
        if self.never_first_V is None:
            return self.allowed_BxV
        return self.allowed_BxV & ~(self.never_first_V & (step == (0 if self.first is None else 1)))

    def force(self, allowed_BxRxV: Array, step: Array, max_new_tokens: int) -> Array:
        """Return `allowed_BxRxV`, but where a rule forces an id in `step`, only this id."""
        ids_V = jnp.arange(allowed_BxRxV.shape[-1])
        if self.forced_BxM is not None:
            forced_Bx1 = jax.lax.dynamic_slice_in_dim(self.forced_BxM, step, 1, axis=1)
            is_forced_Bx1 = step < self.forced_lengths_B[:, None]
            allowed_BxRxV = jnp.where(is_forced_Bx1[:, None], (ids_V == forced_Bx1)[:, None], allowed_BxRxV)
        if self.last is not None:
            allowed_BxRxV = jnp.where(step + 1 == max_new_tokens, ids_V == self.last, allowed_BxRxV)
        return allowed_BxRxV

    def is_forced(self, step: Array, max_new_tokens: int) -> Array:
        """Return bool []: whether `first` or `last` sets the token of `step`. This token adds 0 to a beam's score."""
        return ((step == 0) & (self.first is not None)) | ((step + 1 == max_new_tokens) & (self.last is not None))


def are_stops(tokens: Array, stops: tuple[int, ...]) -> Array:
    """Return bool, in the shape of `tokens`: whether each token is one of `stops`."""
    return jnp.isin(tokens, jnp.array(stops, jnp.int32))


@flax.struct.dataclass
class Answers:
    """Tokens int32 and their log-probabilities float32, both [B, R, M]. Only the first `lengths_BxR` are in use."""

    tokens_BxRxM: Array
    logprobs_BxRxM: Array
    lengths_BxR: Array

    @classmethod
    def make_empty(cls, batch: int, streams: int, max_new_tokens: int) -> "Answers":
        shape = (batch, streams, max_new_tokens)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:2], jnp.int32))

    def take(self, index_BxC: Array) -> "Answers":
        """Return the answers of the streams `index_BxC` of each row."""
        return jax.tree.map(lambda x: take_streams(x, index_BxC), self)

    def write_tokens(self, step: Array, tokens_BxR: Array, logprobs_BxR: Array, live_BxR: Array) -> "Answers":
        """Write the tokens of `step`. Streams where `live_BxR`, bool, is False get no token."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, jnp.where(live_BxR, new, 0)[..., None].astype(old.dtype), step, axis=2
        )
        return Answers(write(self.tokens_BxRxM, tokens_BxR), write(self.logprobs_BxRxM, logprobs_BxR),
                       self.lengths_BxR + live_BxR)  # fmt: skip


@flax.struct.dataclass
class State:
    """The data that a step changes.

    step: the number of the next step, from 0.
    tokens_BxR: the tokens that the next step reads. visible_BxRxS: bool, the slots that each stream sees.
    answers: the tokens that each stream has generated. done_BxR: bool, the streams that have ended.
    seen_BxRxV: bool, the ids that the decoder has read or generated; None if no setting needs them.
    prompt_BxP: from `ngrams.align_prompts`; None if no setting needs it.
    search: the state of beams (`beams.Search`); None without beams.
    """

    step: Array
    cache: Cache
    tokens_BxR: Array
    visible_BxRxS: Array
    answers: Answers
    done_BxR: Array
    seen_BxRxV: Array | None = None
    prompt_BxP: Array | None = None
    search: Any = None


def take_streams(x_BxRx: Array, index_BxC: Array) -> Array:
    """Return [B, C, …]: the streams `index_BxC` of x [B, R, …]."""
    return jnp.take_along_axis(x_BxRx, index_BxC.reshape(*index_BxC.shape, *(1,) * (x_BxRx.ndim - 2)), axis=1)


def begin(model: Transformer, params: Any, inputs_BxL: Array, lengths_B: Array, settings: Settings, room: int,
          prefix_attention: bool, start: int | None) -> State:  # fmt: skip
    """Return the state before the first step. For the inputs and `room`, see `prefill`."""
    streams, steps = settings.streams, settings.max_new_tokens
    batch, vocab_size = len(inputs_BxL), model.config.vocab_size
    ready = prefill(model, params, inputs_BxL, lengths_B, steps=steps, streams=streams, room=room,
                    prefix_attention=prefix_attention, start=start)  # fmt: skip
    each = lambda x: jnp.repeat(x[:, None], streams, axis=1)
    seen = None
    if settings.repetition_penalty != 1:
        read_BxP = jnp.arange(ready.prompt_BxP.shape[1]) < ready.prompt_lengths_B[:, None]
        rows_Bx1 = jnp.arange(batch)[:, None]
        seen = each(jnp.zeros((batch, vocab_size), bool).at[rows_Bx1, ready.prompt_BxP].max(read_BxP))
    size = settings.no_repeat_ngram_size
    prompt = align_prompts(ready.prompt_BxP, ready.prompt_lengths_B, size) if size else None
    answers, done = Answers.make_empty(batch, streams, steps), jnp.zeros((batch, streams), bool)
    return State(jnp.int32(0), ready.cache, each(ready.tokens_B), each(ready.visible_BxS), answers, done, seen, prompt)


def find_slot(settings: Settings, state: State, step: Array | int) -> Array | int:
    """Return the first of the slots that the streams write in `step`."""
    return state.visible_BxRxS.shape[-1] - (settings.max_new_tokens - step) * settings.streams


def count_steps(settings: Settings, state: State) -> int:
    """Return the number of steps that the cache has slots for."""
    return (state.cache.slots - find_slot(settings, state, 0)) // settings.streams


def read(model: Transformer, params: Any, weights: StepWeights, settings: Settings,
         state: State) -> tuple[Array, State]:  # fmt: skip
    """Read each stream's token. Return logits float32 [B, R, V], and the state with the token in the cache."""
    first = find_slot(settings, state, state.step)
    new_RxS = jnp.arange(state.visible_BxRxS.shape[-1]) == first + jnp.arange(settings.streams)[:, None]
    visible = state.visible_BxRxS | new_RxS
    hidden_BxRxD, cache = model.apply({"params": params}, state.tokens_BxR, state.cache, first,
                                      visible[..., : state.cache.slots], weights.layers,
                                      method=Transformer.extend)  # fmt: skip
    logits = model.apply({"params": params}, hidden_BxRxD, weights.vocabulary_DxV, method=Transformer.logits)
    return logits, state.replace(cache=cache, visible_BxRxS=visible)


def find_allowed(settings: Settings, request: Request, eos: tuple[int, ...], state: State) -> Array:
    """Return bool [B or 1, R or 1, V]: the ids that each stream may generate in the next step."""
    allowed_BxRxV = request.find_allowed(state.step)[:, None]
    if settings.min_new_tokens:
        is_too_short = state.step < request.numbers["min_new_tokens"]
        allowed_BxRxV &= ~(is_too_short & are_stops(jnp.arange(allowed_BxRxV.shape[-1]), eos))
    if settings.no_repeat_ngram_size:
        # Tokens without a slot in the cache are not generated yet. So the cost does not depend on max_new_tokens.
        tokens = state.answers.tokens_BxRxM[..., : count_steps(settings, state)]
        prompt = jnp.broadcast_to(state.prompt_BxP[:, None], (*tokens.shape[:2], state.prompt_BxP.shape[1]))
        history, length = jnp.concatenate([prompt, tokens], axis=-1), prompt.shape[-1] + state.step
        repeats = find_repeats(history, length, settings.no_repeat_ngram_size, allowed_BxRxV.shape[-1])
        new_BxRxV = allowed_BxRxV & ~repeats
        allowed_BxRxV = jnp.where(new_BxRxV.any(axis=-1, keepdims=True), new_BxRxV, allowed_BxRxV)
    return request.force(allowed_BxRxV, state.step, settings.max_new_tokens)


def sample(settings: Settings, request: Request, eos: tuple[int, ...], logits_BxRxV: Array, state: State) -> State:
    """Return the state with one more token for each stream: the likeliest token, or a token that is drawn.

    The PRNG key of a draw depends on row, stream and step.
    """
    batch, streams, _ = logits_BxRxV.shape
    numbers, scores = request.numbers, logits_BxRxV
    if settings.repetition_penalty != 1:
        scores = penalise(scores, state.seen_BxRxV, numbers["repetition_penalty"])
    allowed_BxRxV = find_allowed(settings, request, eos, state)
    scores_NxV = jnp.where(allowed_BxRxV, scores, FORBIDDEN).reshape(batch * streams, -1)
    keys_N = None
    if settings.sampled:
        fold = lambda key, stream: jax.random.fold_in(jax.random.fold_in(key, stream), state.step)
        keys_BxR = jax.vmap(jax.vmap(fold, (None, 0)), (0, None))(request.keys_B, jnp.arange(streams))
        keys_N = keys_BxR.reshape(-1)
    filters = {name: numbers[name] for name in ("temperature", "top_p", "min_p") if name in numbers}
    tokens_BxR = choose_next_tokens(scores_NxV, keys_N, top_k=settings.top_k, **filters).reshape(batch, streams)
    logprobs_BxR = jnp.take_along_axis(logits_BxRxV, tokens_BxR[..., None], axis=-1)[..., 0]
    logprobs_BxR -= jax.nn.logsumexp(logits_BxRxV, axis=-1)
    answers = state.answers.write_tokens(state.step, tokens_BxR, logprobs_BxR, ~state.done_BxR)
    return state.replace(step=state.step + 1, tokens_BxR=tokens_BxR, answers=answers,
                         done_BxR=state.done_BxR | are_stops(tokens_BxR, eos),
                         seen_BxRxV=add_tokens(state.seen_BxRxV, tokens_BxR))  # fmt: skip


def add_tokens(seen_BxRxV: Array | None, tokens_BxR: Array) -> Array | None:
    """Add the new tokens to `seen_BxRxV`. If it is None, return None."""
    if seen_BxRxV is None:
        return None
    return seen_BxRxV | (jnp.arange(seen_BxRxV.shape[-1]) == tokens_BxR[..., None])
