"""Masked language models, on an encoder: some tokens are hidden, and the model predicts them.

    mlm        [CLS] tokens [SEP]
    mlm_nsp    [CLS] A [SEP] B [SEP]; in half of the examples B is not the continuation of A, and the answer is 1
    mlm_sop    [CLS] A [SEP] B [SEP]; in half of the examples A and B are swapped, and the answer is 1

Targets are the inputs before tokens are hidden. The chosen tokens, which the model predicts, have weight 1. 80 % of the
chosen tokens become [MASK], 10 % become a random token, and 10 % stay unchanged. Sources: Devlin et al. 2019, "BERT"
(create_pretraining_data.py); Lan et al. 2020, "ALBERT", for the order of sentences; Geiping and Goldstein 2022,
"Cramming", for exact counts.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5lite.objectives import rules
from t5lite.objectives.batch import Example
from t5lite.objectives.noise import DEVIATIONS, limit_noise, make_noise, random_subset, upper_bound, word_numbers
from t5lite.objectives.objective import Expected, Fields, Head, Heads, Kind, Objective, Row, require_window
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import CLS, MASK, SEP, TokenTable, Vocabulary

Array = jax.Array
DENSITY = 0.15
MASKED, MASKED_OR_RANDOM = 0.8, 0.9  # shares of the chosen tokens
MASKINGS, REPLACEMENTS = ("count", "bernoulli"), ("independent", "exact")
# BERT's released heads have the same classes. 0: the second part follows the first. 1: the second part does not follow.
NEXT_SENTENCE = Head("next_sentence", 2, "example", dropout=False)
FOLLOWS_NOT = 1
ADDED = {"mlm": 2, "mlm_nsp": 3, "mlm_sop": 3}  # the number of [CLS] and [SEP] tokens


class Masking(NamedTuple):
    """Settings that decide which tokens are chosen for prediction, and how they are replaced.

    density: the probability that a token is chosen, if `count` is None.
    count: the number of tokens to choose. None: the number is random.
    most: the largest number of tokens to choose.
    exact: whether the shares of [MASK] and of random tokens are exact in each example, or only on average.
    whole_words: whether the pieces of a word are always chosen together.
    sep: the id of [SEP], which ends a word.
    """

    density: float
    count: int | None
    most: int
    exact: bool
    whole_words: bool
    sep: int


def choose_tokens(key: Array, tokens: Array, table: TokenTable, masking: Masking) -> Array:
    """Choose the tokens to predict. Return bool [L]. Special tokens are never chosen; all others are equally likely.

    A word that would exceed the count is skipped, and the next word is tried.
    """
    candidates = ~jnp.asarray(table.is_special)[tokens]
    if masking.count is not None and not masking.whole_words:
        return random_subset(key, candidates, masking.count)
    draws = jax.random.uniform(key, tokens.shape)
    # Tokens before the first start of a word count as one word. A word ends at [SEP].
    word = word_numbers(tokens, table) + 1 + jnp.cumsum(tokens == masking.sep)
    if masking.count is None:
        chosen = candidates & ((draws[word] if masking.whole_words else draws) < masking.density)
        return limit_noise(chosen, 0, masking.most, None)
    sizes = jnp.zeros(tokens.shape, jnp.int32).at[word].add(candidates)
    order = jnp.argsort(draws)

    def take_if_it_fits(total: Array, size: Array) -> tuple[Array, Array]:
        fits = total + size <= masking.count
        return total + jnp.where(fits, size, 0), fits

    _, fits = jax.lax.scan(take_if_it_fits, jnp.int32(0), sizes[order])
    return candidates & jnp.zeros(tokens.shape, bool).at[order].set(fits)[word]


def replace_tokens(key: Array, tokens: Array, chosen: Array, ids: rules.Ids, exact: bool) -> Array:
    """Replace 80 % of the `chosen` tokens by [MASK], and 10 % by a random id of text. Return int32 [L]."""
    draws_key, token_key = jax.random.split(key)
    draws = jax.random.uniform(draws_key, tokens.shape)
    masked, masked_or_random = MASKED, MASKED_OR_RANDOM
    if exact:
        draws = jnp.argsort(jnp.argsort(jnp.where(chosen, draws, 2.0)))  # the rank among the chosen
        masked, masked_or_random = (jnp.round(share * jnp.sum(chosen)) for share in (MASKED, MASKED_OR_RANDOM))
    random = rules.random_ordinary(token_key, tokens.shape, ids)
    new = jnp.where(draws < masked, ids.mask, jnp.where(draws < masked_or_random, random, tokens))
    return jnp.where(chosen, new, tokens)


def choose_sentence_end(key: Array, tokens: Array, table: TokenTable, low: int | Array, high: int | Array) -> Array:
    """Choose the end of a sentence. Return int32 [], from `low` to `high`: the number of `tokens` [L] before the cut.

    All ends of sentences in this range are equally likely. If the range has no end of a sentence, all numbers in the
    range are equally likely.
    """
    place = jnp.arange(1, tokens.shape[0] + 1)
    within = (place >= low) & (place <= high)
    ends = within & jnp.asarray(table.ends_sentence)[tokens]
    places = jnp.where(jnp.any(ends), ends, within)
    return place[jnp.argmax(jnp.where(places, jax.random.uniform(key, tokens.shape), -1.0))]


def _split_in_two_parts(key: Array, row: Row, table: TokenTable, swapped: bool) -> tuple[Array, Array, Array]:
    """Return (tokens of A and B [L], number of A's tokens, answer).

    The answer is FOLLOWS_NOT in half of the examples. In these examples, A and B are swapped if `swapped` is True;
    otherwise B is from another window.
    """
    tokens = row["tokens"]
    length = tokens.shape[0]
    cut_key, label_key, other_key = jax.random.split(key, 3)
    cut = choose_sentence_end(cut_key, tokens, table, 1, length - 1)
    negative = jax.random.bernoulli(label_key)
    if swapped:
        other, other_cut = jnp.roll(tokens, -cut), length - cut
    else:
        # B from another window also begins with a sentence. Otherwise its first token would reveal the answer.
        start = choose_sentence_end(other_key, row["others"], table, 1, cut)
        place = jnp.arange(length)
        other = jnp.where(place < cut, tokens, row["others"][jnp.minimum(place - cut + start, length - 1)])
        other_cut = cut
    return jnp.where(negative, other, tokens), jnp.where(negative, other_cut, cut), jnp.int32(FOLLOWS_NOT) * negative


def _make_masking(fields: Fields, length: int, vocabulary: Vocabulary) -> Masking:
    """Return the Masking for inputs of `length` tokens. Raises UserError for settings that cannot work."""
    density, most = fields["noise_density"], fields["max_predictions"]
    for name, known in (("masking", MASKINGS), ("replacement", REPLACEMENTS)):
        if fields[name] not in known:
            raise UserError(f"config.objective.{name}: unknown {fields[name]!r}; {nearest(str(fields[name]), known)}")
    density = DENSITY if density is None else density
    if not 0 < density < 1:
        raise UserError(f"config.objective.noise_density: must be above 0 and below 1, is {density}")
    if most is not None and (most < 1 or fields["masking"] == "bernoulli"):
        reason = (
            "cannot be combined with masking=bernoulli; unset one of them"
            if most >= 1
            else f"must be at least 1, is {most}"
        )
        raise UserError(f"config.objective.max_predictions: {reason}")
    most = math.ceil(density * length) if most is None else most
    count = min(most, max(1, round(density * length))) if fields["masking"] == "count" else None
    exact, sep, whole_words = fields["replacement"] == "exact", vocabulary.specials[SEP], bool(fields["whole_words"])
    # With whole words the number of tokens varies more than `upper_bound` assumes, so all tokens may be predicted.
    most = (
        length if whole_words else upper_bound(length, length * density, length * density * (1 - density), DEVIATIONS)
    )
    return Masking(density, count, most if count is None else count, exact, whole_words, sep)


def _compute_window(fields: Fields, vocabulary: Vocabulary) -> int:
    del vocabulary
    return require_window(fields, fields["inputs_length"] - ADDED[fields["name"]])


def _build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    name, length = fields["name"], window + ADDED[fields["name"]]
    masking, ids = _make_masking(fields, length, vocabulary), rules.Ids.from_vocabulary(vocabulary)
    cls, sep = (jnp.full(1, vocabulary.specials[special], jnp.int32) for special in (CLS, SEP))

    def hide(key: Array, tokens: Array, table: TokenTable) -> tuple[Array, Array]:
        chosen_key, new_key = jax.random.split(key)
        chosen = choose_tokens(chosen_key, tokens, table, masking)
        return replace_tokens(new_key, tokens, chosen, ids, masking.exact), chosen

    def make_one_part(key: Array, row: Row, table: TokenTable) -> Example:
        tokens = jnp.concatenate([cls, row["tokens"], sep])
        inputs, chosen = hide(key, tokens, table)
        return Example(inputs, tokens, chosen.astype(jnp.float32), noise=make_noise(chosen[1:-1]))

    def make_two_parts(key: Array, row: Row, table: TokenTable) -> Example:
        parts_key, hide_key = jax.random.split(key)
        parts, cut, label = _split_in_two_parts(parts_key, row, table, swapped=name == "mlm_sop")
        place = jnp.arange(window)
        moved_to = place + 1 + (place >= cut)
        tokens = jnp.full(length, sep[0]).at[0].set(cls[0]).at[moved_to].set(parts)
        inputs, chosen = hide(hide_key, tokens, table)
        types = (jnp.arange(length) > cut + 1).astype(jnp.int32)
        noise = make_noise(chosen[moved_to])
        weights = chosen.astype(jnp.float32)
        return Example(inputs, tokens, weights, noise=noise, ordered=parts, token_types=types,
                       answers={NEXT_SENTENCE.name: label})  # fmt: skip

    return Objective(
        name=name,
        architecture=fields["architecture"],
        make=make_one_part if name == "mlm" else make_two_parts,
        rows="windows",
        window=window,
        inputs_length=length,
        targets_length=length,
        second_window=name == "mlm_nsp",
        predicted=masking.most,
        heads=Heads(others=() if name == "mlm" else (NEXT_SENTENCE,)),
        expected=Expected(masking.density if masking.count is None else masking.count / window),
    )


def _make_evaluation_fields(fields: Fields) -> Fields:
    """Return the fields for evaluation: 15 % of the tokens, by count, for all settings of training."""
    usual = {"noise_density": None, "max_predictions": None, "masking": "count", "replacement": "independent"}
    return {**fields, **usual, "whole_words": False}


USES = ("noise_density", "masking", "replacement", "whole_words", "max_predictions")
KIND = Kind(
    architectures=("encoder",),
    window=_compute_window,
    build=_build,
    uses=lambda fields: USES,
    specials=lambda fields: (MASK, CLS, SEP),
    evaluation_fields=_make_evaluation_fields,
)
KINDS = dict.fromkeys(ADDED, KIND)
