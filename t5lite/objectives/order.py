"""Orders: permutations of a window's tokens, (key, tokens int32 [L], token table) -> tokens [L]."""

import jax
import jax.numpy as jnp

from t5lite.system.vocabulary import TokenTable

Array = jax.Array


def kept(key: Array, tokens: Array, table: TokenTable) -> Array:
    """As they are."""
    del key, table
    return tokens


def shuffled(key: Array, tokens: Array, table: TokenTable) -> Array:
    """All tokens in random order."""
    del table
    return jax.random.permutation(key, tokens)


def sentence_numbers(tokens: Array, table: TokenTable) -> Array:
    """Int32 [L]: the sentence of each token. One ends with the first of several tokens that end a sentence, and with
    the window.

    Source: fairseq, denoising_dataset.py, `permute_sentences`.
    """
    stops = jnp.asarray(table.ends_sentence)[tokens]
    ends = stops & ~jnp.concatenate([jnp.zeros(1, bool), stops[:-1]])
    return jnp.cumsum(ends) - ends


def sentences_shuffled(key: Array, tokens: Array, table: TokenTable) -> Array:
    """The sentences in random order, each as it was."""
    sentence = sentence_numbers(tokens, table)
    draws = jax.random.uniform(key, tokens.shape)[sentence]
    # By sentence where two draws are equal, so that none is torn apart.
    return tokens[jnp.lexsort((sentence, draws))]
