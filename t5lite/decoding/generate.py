"""Generation: read the inputs or prompts once. Then, in a compiled loop, each step generates one token for all rows.

    generated = generate(model, params, inputs, lengths, Settings(max_new_tokens=32, num_beams=4))
    generated.tokens[b, 0, : generated.lengths[b, 0]]          the best answer to row b

The answer to a row depends only on its own input, key and settings, not on other rows or padding. (If the scores of two
tokens differ only in the last bits, rounding may decide.) The number of steps is an argument of the compiled loop. So
one compiled program can generate the whole answer at once, or in pieces:

    generation = Generation(model, params, inputs, lengths, settings)
    for answers in generation.pieces(every=16, stopped=lambda row, tokens: "\\n\\n" in decode(tokens)):
        show(answers)
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding import beams, streams
from t5lite.decoding.prefill import front_token
from t5lite.decoding.settings import Settings
from t5lite.model.transformer import StepWeights, Transformer
from t5lite.system.errors import UserError

Array = jax.Array

# The number of slots that a row's cache has at the start for the tokens of its streams. It doubles when answers need
# more slots. So the cost of a step depends on the real length of the answers, not on max_new_tokens. Each size needs
# its own program.
FIRST_SLOTS = 128


class Generated(NamedTuple):
    """The answers: R = num_return answers to each row; M = max_new_tokens.

    The best answer to a row is the first. But answers from `Generation.pieces` are in the order in which they were
    drawn.

    tokens: int32 [B, R, M]; 0 beyond `lengths`.
    lengths: int32 [B, R]. EOS is counted, if the answer has EOS.
    logprobs: float32 [B, R, M], the model's log-probability of each token, from the logits of the whole vocabulary; 0
        beyond `lengths`. Settings such as temperature or `allowed` do not change it.
    scores: float32 [B, R]. With beams, see `Settings`; else the sum of logprobs.

    If a row ends with fewer than R hypotheses, the missing answers have length 0 and score -1e9.
    """

    tokens: Array
    lengths: Array
    logprobs: Array
    scores: Array


class Generation:
    """Answers in progress. Call `advance` once or several times, or iterate over `pieces`. Then call `result`.

    inputs int32 [B, L], lengths int32 [B]: the encoder's inputs, or a decoder's prompts, padded at their end.
    keys: PRNG keys [B], one for each row, to draw samples.
    prefixes: for each row, the tokens with which its answers must begin. They count as generated tokens.
    allowed: bool [V] or [B, V], the ids that may be generated. If it is shorter than V, later ids are forbidden. None:
        all ids are allowed.
    prefix_attention: whether the tokens of a decoder's prompt see each other in both directions. It must be the same as
        in training.
    eos: the ids that end an answer.
    start: the id that the decoder of an encoder-decoder reads first. It is not generated.
    first: the id of token 1. A prefix that is not empty must begin with `first` (this is not checked).
    last: the id of token max_new_tokens. An answer that ends earlier does not get this token.
    never_first: without `first`, ids that may not be token 1. With `first`, ids that may not be token 2.
    prepend_start: whether `start` stands in front of a decoder's prompt too. If not, no prompt may be empty.
    usual_settings: {field: value} for fields of the settings that are None; see `Settings.complete`.
    weights: `step_weights` of the same parameters, for callers that generate more than once. None: computed here.

    Raises UserError for an encoder, no allowed ids, prefixes that do not fit, and an empty prompt if no start token
    stands in front (this is checked only if `lengths` is a NumPy array). Raises ValueError for sampling without `keys`.
    """

    def __init__(self, model: Transformer, params: Any, inputs: Array, lengths: Array, settings: Settings, *,
                 keys: Array | None = None, prefixes: Sequence[Sequence[int]] | None = None,
                 allowed: np.ndarray | None = None, prefix_attention: bool = False, eos: int | Sequence[int] = 1,
                 start: int = 0, prepend_start: bool = True, first: int | None = None, last: int | None = None,
                 never_first: Sequence[int] = (), usual_settings: Mapping[str, int] = MappingProxyType({}),
                 weights: StepWeights | None = None):  # fmt: skip
        if model.config.architecture == "encoder":
            raise UserError("the model is an encoder, which cannot generate; choose a model with a decoder")
        if settings.sampled and keys is None:
            raise ValueError("sampling needs `keys`: one PRNG key for each row")
        self.settings = settings = settings.complete(usual_settings)
        stops = (eos,) if isinstance(eos, int) else tuple(eos)
        front = front_token(model, start, prepend_start)
        if front is None and isinstance(lengths, np.ndarray) and not lengths.all():
            raise UserError("a prompt is empty, and the model has no start token to begin with; give a text")
        static_settings, numbers = settings.split()
        if first is not None:
            prefixes = [list(prefix) or [first] for prefix in prefixes or [()] * len(inputs)]
        forced, forced_lengths = _pad_prefixes(prefixes, len(inputs), settings.max_new_tokens)
        vocab_size = model.config.vocab_size
        allowed_BxV = _pad_allowed(allowed, vocab_size)
        forbidden_V = np.isin(np.arange(vocab_size), never_first) if len(never_first) else None
        _check_first_ids(allowed_BxV, forbidden_V, stops if settings.min_new_tokens else ())
        request = streams.Request(
            jnp.asarray(allowed_BxV),
            {name: jnp.float32(number) for name, number in numbers.items()},
            keys if settings.sampled else None,
            forced,
            forced_lengths,
            *(None if token is None else jnp.int32(token) for token in (first, last)),
            None if forbidden_V is None else jnp.asarray(forbidden_V),
        )
        room = min(max(1, FIRST_SLOTS // settings.streams), settings.max_new_tokens)
        self._state = _begin(model, params, jnp.asarray(inputs, jnp.int32), jnp.asarray(lengths, jnp.int32),
                             settings=static_settings, room=room, prefix_attention=prefix_attention,
                             start=front)  # fmt: skip
        weights = step_weights(model, params) if weights is None else weights
        self._advance = functools.partial(
            _advance, model, params, weights, request, settings=static_settings, eos=stops
        )
        self._grow = functools.partial(_grow, settings=static_settings)

    def advance(self, limit: int | None = None) -> None:
        """Generate until each answer has ended or has `limit` tokens. None: max_new_tokens."""
        limit = self.settings.max_new_tokens if limit is None else min(limit, self.settings.max_new_tokens)
        while True:
            steps_with_slots = streams.count_steps(self.settings, self._state)
            self._state, unfinished = self._advance(self._state, jnp.int32(min(limit, steps_with_slots)))
            if limit <= steps_with_slots or not unfinished:
                return
            self._state = self._grow(self._state)  # the cache is full: make it larger and go on

    def pieces(self, every: int = 16, stopped: Callable[[int, list[int]], bool] | None = None) -> Iterator[Generated]:
        """Yield the answers so far, as NumPy arrays, each time after `every` tokens, until all answers have ended.

        The samples of a row are in the order in which they were drawn. Raises UserError with beams.

        stopped: called with a row and all tokens so far of one of its unfinished answers. If it returns True, the
            answer ends. `stopped` is called only after each `every` tokens, so such an answer may have tokens too many.
            The caller must cut its tokens and its log-probabilities.
        """
        if self.settings.num_beams > 1:
            raise UserError(f"num_beams={self.settings.num_beams}: beams change during the search, so answers can "
                            "neither be streamed nor stopped at a text; set num_beams=1")  # fmt: skip
        for limit in range(every, self.settings.max_new_tokens + every, every):
            self.advance(limit)
            answers, done = jax.device_get((_collect_answers(self._state), self._state.done_BxR))
            done = done.copy()
            if stopped is not None:
                for row, stream in np.argwhere(~done):
                    tokens = answers.tokens[row, stream, : answers.lengths[row, stream]]
                    done[row, stream] = stopped(int(row), tokens.tolist())
                self._state = self._state.replace(done_BxR=jnp.asarray(done))
            yield answers
            if done.all():
                return

    def result(self) -> Generated:
        """Return the answers, the best first. With beams: only answers that have ended."""
        return _select_answers(self._state, num_return=self.settings.num_return)


def generate(model: Transformer, params: Any, inputs: Array, lengths: Array, settings: Settings,
             **options: Any) -> Generated:  # fmt: skip
    """Return the answers to all rows at once. For the arguments, see `Generation`."""
    generation = Generation(model, params, inputs, lengths, settings, **options)
    generation.advance()
    return generation.result()


@functools.partial(jax.jit, static_argnames="model")
def step_weights(model: Transformer, params: Any) -> StepWeights:
    """Return the weights that the steps of `Generation` read. They need as much memory as the decoder.

    Call this function under the parameters' mesh, if they have one.
    """
    return model.apply({"params": params}, method=Transformer.step_weights)


def pad_rows(
    rows: Sequence[Sequence[int]], *, minimum: int = 16, max_length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs int32 [B, L] and their lengths int32 [B].

    B and L are rounded up to powers of two, so that few programs are compiled. L is at least `minimum`. But L is never
    above `max_length` (the number of the model's positions), except if a row is longer: then L is the length of that
    row. Additional rows are copies of the first row, so they need no more steps.
    """
    longest = max(map(len, rows))
    width = max(minimum, _power_of_two(longest))
    width = width if max_length is None else max(longest, min(width, max_length))
    inputs = np.zeros((_power_of_two(len(rows)), width), np.int32)
    lengths = np.full(len(inputs), len(rows[0]), np.int32)
    inputs[:, : len(rows[0])] = rows[0]
    for index, row in enumerate(rows):
        inputs[index] = np.pad(np.asarray(row, np.int32), (0, width - len(row)))
        lengths[index] = len(row)
    return inputs, lengths


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 0).bit_length()


def _pad_allowed(allowed: np.ndarray | None, vocab_size: int) -> np.ndarray:
    """Return `allowed` as bool [B or 1, V]."""
    allowed_BxA = np.atleast_2d(np.ones(vocab_size, bool) if allowed is None else allowed)
    return np.pad(allowed_BxA, ((0, 0), (0, vocab_size - allowed_BxA.shape[1])))


def _check_first_ids(allowed_BxV: np.ndarray, never_first_V: np.ndarray | None, stops: Sequence[int]) -> None:
    """Raise UserError if a row has no id to begin an answer with. stops: ids that may not begin an answer."""
    never_V = np.isin(np.arange(allowed_BxV.shape[1]), stops)
    allowed_BxV = allowed_BxV & ~(never_V if never_first_V is None else never_V | never_first_V)
    if not allowed_BxV.any(axis=1).all():
        raise UserError("every id is suppressed, so nothing can be generated; suppress fewer")


def _pad_prefixes(
    prefixes: Sequence[Sequence[int]] | None, batch: int, max_new_tokens: int
) -> tuple[Array | None, Array | None]:
    """Return the prefixes, int32 [B, M], and their lengths, int32 [B]; (None, None) without prefixes.

    The shape does not depend on the lengths of the prefixes, so that all prefixes share one program.
    """
    if prefixes is None or not any(map(len, prefixes)):
        return None, None
    if len(prefixes) != batch:
        raise UserError(
            f"{len(prefixes)} prefixes for {batch} rows; give one prefix for each row (a prefix may be empty)"
        )
    longest = max(map(len, prefixes))
    if longest > max_new_tokens:
        raise UserError(
            f"a prefix of {longest} tokens is longer than max_new_tokens={max_new_tokens}; shorten the prefix, or "
            "raise max_new_tokens"
        )
    forced = np.zeros((batch, max_new_tokens), np.int32)
    for row, prefix in zip(forced, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return jnp.asarray(forced), jnp.asarray([len(prefix) for prefix in prefixes], jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "settings", "room", "prefix_attention", "start"))
def _begin(model, params, inputs, lengths, *, settings, room, prefix_attention, start):
    state = streams.begin(model, params, inputs, lengths, settings, room, prefix_attention, start)
    return state.replace(search=beams.begin_search(state.answers)) if settings.num_beams > 1 else state


@functools.partial(jax.jit, static_argnames=("model", "settings", "eos"), donate_argnames="state")
def _advance(model, params, weights, request, state, limit, *, settings, eos):
    choose = beams.search if settings.num_beams > 1 else streams.sample

    def step(state):
        logits_BxRxV, state = streams.read(model, params, weights, settings, state)
        return choose(settings, request, eos, logits_BxRxV, state)

    state = jax.lax.while_loop(lambda state: (state.step < limit) & ~state.done_BxR.all(), step, state)
    return state, ~state.done_BxR.all()


@functools.partial(jax.jit, static_argnames="settings")
def _grow(state, *, settings):
    steps = min(2 * streams.count_steps(settings, state), settings.max_new_tokens)
    return state.replace(cache=state.cache.grow(streams.find_slot(settings, state, steps)))


def _collect_answers(state: streams.State) -> Generated:
    answers = state.answers
    return Generated(answers.tokens_BxRxM, answers.lengths_BxR, answers.logprobs_BxRxM, answers.logprobs_BxRxM.sum(-1))


@functools.partial(jax.jit, static_argnames="num_return")
def _select_answers(state: streams.State, *, num_return: int) -> Generated:
    if state.search is not None:
        best = state.search.hypotheses
        scores_BxR = state.search.hypothesis_scores_BxR
        answers = Generated(best.tokens_BxRxM, best.lengths_BxR, best.logprobs_BxRxM, scores_BxR)
    else:
        answers = _collect_answers(state)
        order_BxR = jnp.argsort(answers.scores, axis=1, descending=True, stable=True)
        answers = Generated(*(streams.take_streams(x, order_BxR) for x in answers))
    return Generated(*(x[:, :num_return] for x in answers))
