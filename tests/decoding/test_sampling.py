"""Sampling draws from the distribution that the settings define."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5lite.decoding.sampling import FORBIDDEN, choose_next_tokens, keep_min_p, keep_top_k, keep_top_p, penalise

PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), PROBABILITIES),
        (dict(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (dict(top_k=3), np.array([0.4, 0.3, 0.15, 0, 0]) / 0.85),
        (dict(top_p=0.6), np.array([0.4, 0.3, 0, 0, 0]) / 0.7),
        (dict(top_k=2, top_p=0.5), np.array([1.0, 0, 0, 0, 0])),
        (dict(min_p=0.3), np.array([0.4, 0.3, 0.15, 0, 0]) / 0.85),
        (dict(temperature=0.5, min_p=0.3), np.array([0.16, 0.09, 0, 0, 0]) / 0.25),
    ],
)
def test_samples_follow_the_distribution(options, expected):
    draws = 4000
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (draws, 5))
    tokens = choose_next_tokens(logits, jax.random.split(jax.random.key(0), draws), **options)
    counts = np.bincount(tokens, minlength=5)
    assert (counts[expected == 0] == 0).all()
    if (expected > 0).sum() > 1:
        kept = expected > 0
        assert stats.chisquare(counts[kept], draws * expected[kept]).pvalue > 0.01


def test_filters_keep_the_likeliest():
    logits = jnp.log(jnp.asarray(PROBABILITIES))[None, ::-1]
    kept = lambda filtered: (np.asarray(filtered)[0] > FORBIDDEN).astype(int).tolist()
    assert kept(keep_top_k(logits, 2)) == [0, 0, 0, 1, 1]
    assert kept(keep_top_k(logits, 100)) == [1] * 5
    assert kept(keep_top_p(logits, 0.8)) == [0, 0, 1, 1, 1]
    assert kept(keep_top_p(logits, 0.01)) == [0, 0, 0, 0, 1]
    assert kept(keep_min_p(logits, 0.3)) == [0, 0, 1, 1, 1]
    assert kept(keep_min_p(logits, 1.0)) == [0, 0, 0, 0, 1]


def test_a_penalty_makes_known_ids_less_likely_whatever_their_sign():
    seen = jnp.array([True, True, False, False])
    penalised = penalise(jnp.array([2.0, -2.0, 2.0, -2.0]), seen, 4.0)
    np.testing.assert_array_equal(penalised, [0.5, -8.0, 2.0, -2.0])


def test_without_keys_the_likeliest_is_taken():
    assert choose_next_tokens(jnp.log(PROBABILITIES)[None], None).tolist() == [0]
