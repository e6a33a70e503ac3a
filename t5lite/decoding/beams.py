"""Beam search with the rules of Hugging Face's transformers 5 (`GenerationMixin._beam_search`).

A step scores every token after each of the R beams, and keeps the R + R · (number of stop ids) best candidates. The R
best candidates that do not end become the next beams. If a candidate that ends is one of the R best candidates, it
becomes a hypothesis.

A row keeps its R best hypotheses, by log-probability / length ** length_penalty. For each beam and each stop id, at
most one candidate ends, so at least R candidates do not end. At the last step all candidates end. A row is done if its
hypotheses cannot get better, by the rule of `early_stopping`. Rows do not influence each other.
"""

import flax.struct
import jax
import jax.numpy as jnp

from t5lite.decoding.sampling import penalise
from t5lite.decoding.settings import Settings
from t5lite.decoding.streams import Answers, Request, State, add_tokens, are_stops, find_allowed, take_streams

Array = jax.Array

# The score of a beam or hypothesis that does not exist yet. Finite, so that the sum of two such scores is not NaN.
NONE = -1e9
BLOCK = 128


@flax.struct.dataclass
class Search:
    """The part of the state that beams need.

    scores_BxR: the sum of each beam's log-probabilities, the best beam first.
    hypotheses, hypothesis_scores_BxR: ended answers and their final scores, the best first. NONE: no hypothesis yet.
    improvable_B: bool, whether a row's hypotheses can still get better.
    """

    scores_BxR: Array
    hypotheses: Answers
    hypothesis_scores_BxR: Array
    improvable_B: Array


def begin_search(answers: Answers) -> Search:
    """Return the search before the first step. The beams of a row are equal, so only the first beam has a score."""
    batch, beams, _ = answers.tokens_BxRxM.shape
    none = jnp.full((batch, beams), NONE)
    return Search(none.at[:, 0].set(0.0), answers, none, jnp.ones(batch, bool))


def top_k_by_blocks(x_BxN: Array, k: int) -> tuple[Array, Array]:
    """Return the result of `jax.lax.top_k`, with the same order of equal values. It is far faster on a CPU.

    The k best values are in the k blocks with the largest maxima. The last block is padded with -inf at its end. So the
    padding comes after all values, even after values of -inf.
    """
    count = -(-x_BxN.shape[1] // BLOCK)
    if k >= count:
        return jax.lax.top_k(x_BxN, k)
    filled = jnp.pad(x_BxN, ((0, 0), (0, count * BLOCK - x_BxN.shape[1])), constant_values=-jnp.inf)
    blocks = filled.reshape(len(x_BxN), count, BLOCK)
    best_Bxk = jnp.sort(jax.lax.top_k(blocks.max(axis=-1), k)[1], axis=-1)
    values, index = jax.lax.top_k(take_streams(blocks, best_Bxk).reshape(len(x_BxN), -1), k)
    return values, jnp.take_along_axis(best_Bxk, index // BLOCK, axis=1) * BLOCK + index % BLOCK


def search(settings: Settings, request: Request, eos: tuple[int, ...], logits_BxRxV: Array, state: State) -> State:
    """Return the state after one more token: the next beams, and the hypotheses."""
    before, beams, vocab_size = state.search, settings.num_beams, logits_BxRxV.shape[-1]
    logprobs_BxRxV = jax.nn.log_softmax(logits_BxRxV)
    ranking_BxRxV = _compute_ranking_scores(settings, request, eos, state, logprobs_BxRxV)
    totals = ranking_BxRxV + before.scores_BxR[..., None]
    count = min(max(2, 1 + len(eos)) * beams, beams * vocab_size)
    scores_BxC, index_BxC = top_k_by_blocks(totals.reshape(len(totals), -1), count)
    parents_BxC, tokens_BxC = index_BxC // vocab_size, index_BxC % vocab_size
    logprobs_BxC = jnp.take_along_axis(logprobs_BxRxV.reshape(len(totals), -1), index_BxC, axis=1)
    live_BxC = jnp.ones(index_BxC.shape, bool)
    candidates = state.answers.take(parents_BxC).write_tokens(state.step, tokens_BxC, logprobs_BxC, live_BxC)

    last = state.step + 1 == settings.max_new_tokens
    ends_BxC = are_stops(tokens_BxC, eos) | last
    scores_BxR, best_BxR = jax.lax.top_k(jnp.where(ends_BxC, scores_BxC + NONE, scores_BxC), beams)
    parents_BxR = jnp.take_along_axis(parents_BxC, best_BxR, axis=1)
    tokens_BxR = jnp.take_along_axis(tokens_BxC, best_BxR, axis=1)
    after = _add_ended(settings, request, state, candidates, scores_BxC, ends_BxC).replace(scores_BxR=scores_BxR)
    after = after.replace(improvable_B=_can_improve(settings, request, state.step + 1, after))
    done_B = ~after.improvable_B | ((settings.early_stopping is True) & _has_all_hypotheses(after))
    seen = None if state.seen_BxRxV is None else take_streams(state.seen_BxRxV, parents_BxR)
    return state.replace(
        step=state.step + 1,
        tokens_BxR=tokens_BxR,
        visible_BxRxS=take_streams(state.visible_BxRxS, parents_BxR),
        answers=candidates.take(best_BxR),
        done_BxR=jnp.broadcast_to(done_B[:, None], tokens_BxR.shape),
        seen_BxRxV=add_tokens(seen, tokens_BxR),
        search=after,
    )


def _compute_ranking_scores(
    settings: Settings, request: Request, eos: tuple[int, ...], state: State, logprobs_BxRxV: Array
) -> Array:
    """Return the scores that rank the next tokens: log-probabilities, with the repetition penalty. Forbidden ids: -inf.

    The score of an id that `first` or `last` forces is 0, as in transformers.
    """
    if settings.repetition_penalty != 1:
        logprobs_BxRxV = penalise(logprobs_BxRxV, state.seen_BxRxV, request.numbers["repetition_penalty"])
    if request.first is not None or request.last is not None:
        logprobs_BxRxV = jnp.where(request.is_forced(state.step, settings.max_new_tokens), 0.0, logprobs_BxRxV)
    return jnp.where(find_allowed(settings, request, eos, state), logprobs_BxRxV, -jnp.inf)


def _compute_penalty(request: Request, length: Array) -> Array | float:
    penalty = request.numbers.get("length_penalty", 1.0)
    return jnp.asarray(length, jnp.float32) ** penalty


def _has_all_hypotheses(search: Search) -> Array:
    return (search.hypothesis_scores_BxR > NONE / 2).all(axis=1)


def _add_ended(settings: Settings, request: Request, state: State, candidates: Answers, scores_BxC: Array,
                ends_BxC: Array) -> Search:  # fmt: skip
    """Add the candidates that end to the hypotheses, if they are good enough. Return the search."""
    before, beams = state.search, settings.num_beams
    can_add_B = before.improvable_B & ~((settings.early_stopping is True) & _has_all_hypotheses(before))
    eligible = ends_BxC & can_add_B[:, None] & (scores_BxC > NONE / 2) & (jnp.arange(ends_BxC.shape[1]) < beams)
    ended_BxC = jnp.where(eligible, scores_BxC / _compute_penalty(request, state.step + 1), -jnp.inf)
    all_scores = jnp.concatenate([before.hypothesis_scores_BxR, ended_BxC], axis=1)
    hypothesis_scores, best = jax.lax.top_k(all_scores, beams)
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), before.hypotheses, candidates)
    return before.replace(hypotheses=both.take(best), hypothesis_scores_BxR=hypothesis_scores)


def _can_improve(settings: Settings, request: Request, length: Array, after: Search) -> Array:
    """Return bool [B]: whether the best beam can still get a better score than the worst hypothesis.

    `Settings.early_stopping` decides for which length the score is computed.
    """
    best_length = length
    if settings.early_stopping == "never":
        longer_is_better = jnp.asarray(request.numbers.get("length_penalty", 1.0)) > 0
        best_length = jnp.where(longer_is_better, settings.max_new_tokens, length)
    best_B = after.scores_BxR[:, 0] / _compute_penalty(request, best_length)
    # If a row has room for more hypotheses, its worst score is NONE.
    return after.improvable_B & (best_B > after.hypothesis_scores_BxR.min(axis=1))
