"""Orders: functions (key, tokens int32 [L], token table) -> tokens [L] that permute the tokens of a window."""

import jax
import jax.numpy as jnp

from t5lite.system.vocabulary import TokenTable

Array = jax.Array


def keep_order(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return the tokens unchanged."""
    del key, table
    return tokens


def shuffle_tokens(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return all tokens in random order."""
    del table
    return jax.random.permutation(key, tokens)


def sentence_numbers(tokens: Array, table: TokenTable) -> Array:
    """Return int32 [L]: the number of each token's sentence.

    A sentence ends at a token that ends sentences, or at the end of the window. If several such tokens follow each
    other, the first of them ends the sentence. Source: fairseq, denoising_dataset.py, `permute_sentences`.
    """
    stops = jnp.asarray(table.ends_sentence)[tokens]
    ends = stops & ~jnp.concatenate([jnp.zeros(1, bool), stops[:-1]])
    return jnp.cumsum(ends) - ends


def shuffle_sentences(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return the sentences in random order. The tokens of a sentence keep their order."""
    sentence = sentence_numbers(tokens, table)
    draws = jax.random.uniform(key, tokens.shape)[sentence]
    # If two sentences have equal draws, their numbers decide, so that the tokens of a sentence stay together.
    return tokens[jnp.lexsort((sentence, draws))]
