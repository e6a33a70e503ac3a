"""Rules: each rule makes the inputs or the targets of an example from a window and its noise.

For tokens 10 … 15, mask T T F F T F and V = 1000:

    noise_span_to_unique_sentinel        999 12 13 998 15
    noise_span_to_same_sentinel          999 12 13 999 15
    noise_token_to_same_sentinel         999 999 12 13 999 15
    drop_noise                           12 13 15
    nonnoise_span_to_unique_sentinel     10 11 999 14 998
    nonnoise_span_to_same_sentinel       10 11 999 14 999
    drop_nonnoise                        10 11 14

`compact` moves the tokens that a rule keeps to the front.

Sources: text-to-text-transfer-transformer,
t5/data/preprocessors.py; for `infill`, fairseq, denoising_dataset.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.noise import Noise, Process, random_subset, span_starts
from t5lite.system.vocabulary import MASK, Vocabulary

Array = jax.Array


class Ids(NamedTuple):
    """The ids that rules insert into a sequence.

    size: V; the k-th sentinel is V - k.
    ordinary: int32, all ids that are text.
    mask: the id of [MASK]; -1 if the vocabulary has no [MASK].
    random_share: the share of noise tokens that become a random token.
    """

    size: int
    ordinary: np.ndarray
    mask: int = -1
    random_share: float = 0.0

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary, random_share: float = 0.0) -> "Ids":
        ordinary = np.flatnonzero(~vocabulary.table.is_special[: vocabulary.pieces]).astype(np.int32)
        return cls(vocabulary.size, ordinary, vocabulary.specials.get(MASK, -1), random_share)


RuleFunction = Callable[[Array, Array, Noise, Ids], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule, and the number of tokens that it keeps.

    apply: (key, tokens int32 [L], noise, ids) -> (new tokens int32 [L], bool [L]: the tokens to keep).
    unique_sentinels: whether each span has its own sentinel.
    inserts_mask: whether the rule inserts [MASK].

    The largest number of kept tokens is linear in the counts of the noise: per_token · L + per_noise · noise tokens +
    per_span · noise spans + per_clean_span · clean spans.
    """

    apply: RuleFunction
    per_token: int
    per_noise: int = 0
    per_span: int = 0
    per_clean_span: int = 0
    unique_sentinels: bool = False
    inserts_mask: bool = False

    @property
    def varies(self) -> bool:
        """Whether the number of kept tokens depends on the noise."""
        return any((self.per_noise, self.per_span, self.per_clean_span))

    def max_kept_tokens(self, window: int, process: Process) -> int:
        """Return the largest number of tokens that the rule keeps from a window."""
        return max_kept_tokens((self,), window, process)

    def count_sentinels(self, spans: int, clean_spans: int) -> int:
        """Return the number of sentinels that the rule uses for so many spans."""
        return self.per_span * spans + self.per_clean_span * clean_spans if self.unique_sentinels else 0


def max_kept_tokens(rules: tuple[Rule, ...], window: int, process: Process) -> int:
    """Return the largest number of tokens that `rules` together keep from one window."""
    per_token, per_noise, per_span, per_clean_span = (
        sum(getattr(rule, name) for rule in rules) for name in ("per_token", "per_noise", "per_span", "per_clean_span")
    )
    return max(
        per_token * window
        + per_noise * noise
        + per_span * min(process.spans, noise)  # a span has at least one token
        + per_clean_span * process.clean_spans
        for noise in (process.least, process.most)
    )


def _span_to_unique_sentinel(tokens: Array, mask: Array, starts: Array, size: int) -> tuple[Array, Array]:
    return jnp.where(starts, size - jnp.cumsum(starts), tokens), starts | ~mask


def _span_to_same_token(tokens: Array, mask: Array, starts: Array, token: int) -> tuple[Array, Array]:
    return jnp.where(starts, token, tokens), starts | ~mask


def _keep_all(tokens: Array) -> tuple[Array, Array]:
    return tokens, jnp.ones(tokens.shape, bool)


def _replace_noise_tokens(token_of: Callable[[Ids], int]) -> RuleFunction:
    """Return a rule's `apply`, which replaces each noise token.

    The new token is a random text id with probability `random_share`, else `token_of(ids)`.
    """

    def apply(key: Array, tokens: Array, noise: Noise, ids: Ids) -> tuple[Array, Array]:
        new = jnp.int32(token_of(ids))
        if ids.random_share:
            share_key, token_key = jax.random.split(key)
            random = random_ordinary(token_key, tokens.shape, ids)
            new = jnp.where(jax.random.uniform(share_key, tokens.shape) < ids.random_share, random, new)
        return _keep_all(jnp.where(noise.mask, new, tokens))

    return apply


def random_ordinary(key: Array, shape: tuple[int, ...], ids: Ids) -> Array:
    """Return random ids of text, int32 of the given shape. All ids of text are equally likely."""
    return jnp.asarray(ids.ordinary)[jax.random.randint(key, shape, 0, len(ids.ordinary))]


def _infill(key: Array, tokens: Array, noise: Noise, ids: Ids) -> tuple[Array, Array]:
    """Replace each span by one [MASK], then insert `noise.inserts` more [MASK] at random places."""
    length = tokens.shape[0]
    place = jnp.arange(length)
    compacted, count = compact(*_span_to_same_token(tokens, noise.mask, noise.starts, ids.mask), length)
    total = count + noise.inserts
    inserted = random_subset(key, place < total, noise.inserts)
    return jnp.where(inserted, ids.mask, compacted[jnp.cumsum(~inserted) - 1]), place < total


def rotate(rule: Rule) -> Rule:
    """Return a rule that applies `rule` and then rotates the tokens: a random kept token becomes the first token."""

    def apply(key: Array, tokens: Array, noise: Noise, ids: Ids) -> tuple[Array, Array]:
        rule_key, first_key = jax.random.split(key)
        new, keep = rule.apply(rule_key, tokens, noise, ids)
        nth = jax.random.randint(first_key, (), 0, jnp.maximum(jnp.sum(keep), 1))
        first = jnp.argmax(jnp.cumsum(keep) > nth)
        return jnp.roll(new, -first), jnp.roll(keep, -first)

    return dataclasses.replace(rule, apply=apply)


keep_all = Rule(lambda key, tokens, noise, ids: _keep_all(tokens), per_token=1)
drop_noise = Rule(lambda key, tokens, noise, ids: (tokens, ~noise.mask), per_token=1, per_noise=-1)
drop_nonnoise = Rule(lambda key, tokens, noise, ids: (tokens, noise.mask), per_token=0, per_noise=1)
noise_span_to_unique_sentinel = Rule(
    lambda key, tokens, noise, ids: _span_to_unique_sentinel(tokens, noise.mask, noise.starts, ids.size),
    per_token=1,
    per_noise=-1,
    per_span=1,
    unique_sentinels=True,
)
noise_span_to_same_sentinel = Rule(
    lambda key, tokens, noise, ids: _span_to_same_token(tokens, noise.mask, noise.starts, ids.size - 1),
    per_token=1,
    per_noise=-1,
    per_span=1,
)
nonnoise_span_to_unique_sentinel = Rule(
    lambda key, tokens, noise, ids: _span_to_unique_sentinel(tokens, ~noise.mask, span_starts(~noise.mask), ids.size),
    per_token=0,
    per_noise=1,
    per_clean_span=1,
    unique_sentinels=True,
)
nonnoise_span_to_same_sentinel = Rule(
    lambda key, tokens, noise, ids: _span_to_same_token(tokens, ~noise.mask, span_starts(~noise.mask), ids.size - 1),
    per_token=0,
    per_noise=1,
    per_clean_span=1,
)
noise_token_to_same_sentinel = Rule(_replace_noise_tokens(lambda ids: ids.size - 1), per_token=1)
noise_token_to_mask = Rule(_replace_noise_tokens(lambda ids: ids.mask), per_token=1, inserts_mask=True)
# One [MASK] for each span, and one for each insertion.
infill = Rule(_infill, per_token=1, per_noise=-1, per_span=1, inserts_mask=True)


def compact(
    tokens: Array, keep: Array, length: int, eos: int | None = None, bos: int | None = None
) -> tuple[Array, Array]:
    """Move the kept tokens to the front. Return (int32 [length], count).

    The result is `bos` (if not None), the kept tokens, `eos` (if not None), then padding. count: the number of tokens
    that are not padding.
    """
    front = 0 if bos is None else 1
    places = jnp.where(keep, jnp.cumsum(keep) - 1 + front, length)
    compacted = jnp.zeros(length, jnp.int32).at[places].set(tokens, mode="drop")
    count = jnp.sum(keep, dtype=jnp.int32) + front
    if bos is not None:
        compacted = compacted.at[0].set(bos)
    if eos is not None:
        compacted = compacted.at[count].set(eos, mode="drop")
        count = count + 1
    return compacted, count
