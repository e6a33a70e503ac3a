"""Orders: permutations of a window's tokens. Each is a function (key, tokens int32 [L], token table) -> tokens [L]."""

import jax
import jax.numpy as jnp

from t5lite.system.vocabulary import TokenTable

Array = jax.Array


def keep_order(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return the tokens in the order they have."""
    del key, table
    return tokens


def shuffle_tokens(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return all tokens in random order."""
    del table
    return jax.random.permutation(key, tokens)


def sentence_numbers(tokens: Array, table: TokenTable) -> Array:
    """Return int32 [L]: the number of each token's sentence.

    A sentence ends with the first of several sentence-ending tokens, and at the end of the window. Source: fairseq,
    denoising_dataset.py, `permute_sentences`.
    """
    stops = jnp.asarray(table.ends_sentence)[tokens]
    ends = stops & ~jnp.concatenate([jnp.zeros(1, bool), stops[:-1]])
    return jnp.cumsum(ends) - ends


def shuffle_sentences(key: Array, tokens: Array, table: TokenTable) -> Array:
    """Return the sentences in random order. The tokens of a sentence keep their order."""
    sentence = sentence_numbers(tokens, table)
    draws = jax.random.uniform(key, tokens.shape)[sentence]
    # `sentence` breaks ties between equal draws, so that no sentence is torn apart.
    return tokens[jnp.lexsort((sentence, draws))]
