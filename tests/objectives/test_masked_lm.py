"""Masked language models: which tokens are chosen, how they are replaced, and the two parts of an example.

Statistics use fixed seeds. With another seed, correct code would exceed a bound with a chance of one in a million.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5lite.config import base_config
from t5lite.objectives.catalogue import special_tokens
from t5lite.objectives.objective import make_batch, make_examples
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, MASK, SEP, Vocabulary
from t5lite.tasks.table import make_evaluation_objective, make_objective

FALSE_ALARM = 1e-6
PIECES, STOP = 300, 3
VOCABULARY = Vocabulary.synthetic(PIECES, 10, (MASK, CLS, SEP))
MASK_ID, CLS_ID, SEP_ID = (VOCABULARY.specials[name] for name in (MASK, CLS, SEP))
FIELDS = base_config().objective.to_dict() | {"name": "mlm", "inputs_length": 128}


def objective(make=make_objective, **fields):
    return make(FIELDS | fields, "encoder", VOCABULARY)


def rows_of(made, count, low=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(low, PIECES, each.shape, dtype=np.int32) for name, each in made.row_structs(count).items()
    }


def examples(made, count=1, rows=None, table=VOCABULARY.table, seed=0):
    """Return `count` Examples as NumPy arrays. If `rows` has one row, the row is repeated."""
    rows = rows_of(made, count) if rows is None else {k: np.repeat(v, count, axis=0) for k, v in rows.items()}
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.device_get(jax.jit(lambda keys, rows: make_examples(made, keys, rows, table))(keys, rows))


def test_inputs_stand_between_cls_and_sep_and_targets_are_what_they_were():
    made = objective()
    rows = rows_of(made, 20)
    found = jax.device_get(make_examples(made, jax.random.split(jax.random.key(0), 20), rows, VOCABULARY.table))
    assert (found.targets[:, 0] == CLS_ID).all() and (found.targets[:, -1] == SEP_ID).all()
    assert (found.targets[:, 1:-1] == rows["tokens"]).all()
    assert (found.inputs == found.targets)[found.weights == 0].all()
    assert (found.noise.mask == found.weights[:, 1:-1]).all()
    batch = make_batch(made, jax.random.split(jax.random.key(0), 20), rows, VOCABULARY.table)
    assert batch.inputs_segment_ids is None and batch.decoder_inputs is None and not batch.answers


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"inputs_length": 512}, 77),  # 76.8
        ({"inputs_length": 128}, 19),  # 19.2
        ({"inputs_length": 10}, 2),  # 1.5, halves to even
        ({"inputs_length": 4}, 1),  # 0.6
        ({"inputs_length": 5}, 1),  # 0.75
        ({"inputs_length": 512, "noise_density": 0.3}, 154),  # 153.6
        ({"inputs_length": 512, "max_predictions": 20}, 20),
        ({"inputs_length": 512, "noise_density": 0.3, "replacement": "exact"}, 154),
    ],
    ids=str,
)
def test_every_example_asks_for_its_count(fields, count):
    weights = examples(objective(**fields), 8).weights
    assert (weights.sum(axis=1) == count).all()


def test_specials_are_never_asked_for_and_all_else_as_often():
    made = objective(inputs_length=34)
    tokens = np.arange(10, 42, dtype=np.int32)
    specials = {3: 1, 9: 2, 17: PIECES, 25: PIECES + 9, 31: MASK_ID}  # EOS, unknown, sentinels, a special
    for place, token in specials.items():
        tokens[place] = token
    found = examples(made, 4000, {"tokens": tokens[None]})
    counts = found.noise.mask.sum(axis=0)
    assert (counts[list(specials)] == 0).all() and (found.weights[:, [0, -1]] == 0).all()
    counts = np.delete(counts, list(specials))
    drawn, expected = 5, 5 * 4000 / len(counts)
    # The tokens of an example are drawn without replacement, so counts vary less than in a multinomial.
    statistic = ((counts - expected) ** 2 / expected).sum() * (len(counts) - 1) / (len(counts) - drawn)
    assert statistic < stats.chi2.isf(FALSE_ALARM, len(counts) - 1)


def test_where_few_tokens_are_text_all_of_them_are_asked_for():
    tokens = np.full((1, 30), 1, np.int32)
    tokens[0, [4, 20]] = 50
    assert np.flatnonzero(examples(objective(inputs_length=32), 1, {"tokens": tokens}).noise.mask[0]).tolist() == [
        4,
        20,
    ]


def kinds_of_replacement(found):
    """Count the chosen tokens that are (replaced by [MASK], replaced by another token, unchanged)."""
    asked = found.weights > 0
    new, old = found.inputs[asked], found.targets[asked]
    return np.array([np.sum(new == MASK_ID), np.sum((new != MASK_ID) & (new != old)), np.sum(new == old)])


def test_eighty_percent_mask_ten_random_ten_kept():
    found = examples(objective(), 2000)
    same = 0.1 / (PIECES - 3)  # the chance that a random token is the original token
    counts, shares = kinds_of_replacement(found), np.array([0.8, 0.1 - same, 0.1 + same])
    statistic, _ = stats.chisquare(counts, counts.sum() * shares)
    assert statistic < stats.chi2.isf(FALSE_ALARM, 2)
    new = found.inputs[(found.weights > 0) & (found.inputs != MASK_ID)]
    assert new.min() > 2 and new.max() < PIECES, "a special was put in"


def test_exact_replacement_meets_the_shares_in_every_example():
    found = examples(objective(replacement="exact", inputs_length=200), 50)  # of 30: 24, 3, 3
    asked = found.weights > 0
    assert ((found.inputs == MASK_ID).sum(axis=1) == 24).all()
    changed = (asked & (found.inputs != MASK_ID) & (found.inputs != found.targets)).sum(axis=1)
    assert changed.max() == 3 and changed.min() >= 2
    assert np.unique(np.nonzero(found.inputs == MASK_ID)[1]).size > 150


def test_bernoulli_asks_for_each_token_on_its_own():
    found = examples(objective(masking="bernoulli", noise_density=0.3), 2000)
    counts = found.noise.mask.sum(axis=1)
    variance = 126 * 0.3 * 0.7
    assert abs(counts.mean() - 126 * 0.3) < stats.norm.isf(FALSE_ALARM / 2) * (variance / 2000) ** 0.5
    ratio = 1999 * counts.var(ddof=1) / variance
    assert stats.chi2.isf(1 - FALSE_ALARM / 2, 1999) < ratio < stats.chi2.isf(FALSE_ALARM / 2, 1999)


def table_of_words(continues):
    """Return a token table in which ids from `continues` on continue the word before them."""
    table = VOCABULARY.table
    return dataclasses.replace(table, starts_word=table.starts_word & (np.arange(VOCABULARY.rows) < continues))


@pytest.mark.parametrize("masking", ["count", "bernoulli"])
@pytest.mark.parametrize("name", ["mlm", "mlm_nsp"])
def test_whole_words_are_never_torn(name, masking):
    made, table = objective(name=name, whole_words=True, masking=masking), table_of_words(150)
    found = examples(made, 300, table=table)
    starts = table.starts_word[found.targets] | (found.targets >= PIECES)
    starts[:, 1:] |= found.targets[:, :-1] == SEP_ID
    goes_on = ~starts[:, 1:] & (found.targets[:, :-1] != CLS_ID)
    assert goes_on.mean() > 0.3
    assert (found.weights[:, 1:] == found.weights[:, :-1])[goes_on].all()
    if masking == "count":
        counts = found.weights.sum(axis=1)
        assert counts.max() == 19 and counts.mean() > 18
    if name == "mlm_nsp":
        row, sep = np.nonzero(found.targets[:, :-1] == SEP_ID)
        cut_words = ~table.starts_word[found.targets[row, sep + 1]]
        assert cut_words.sum() > 50, "no word goes on beyond [SEP]"
        assert (found.weights[row, sep + 1] != found.weights[row, sep - 1])[cut_words].mean() > 0.1


def test_a_word_that_would_be_too_much_is_passed_over_for_the_next():
    # Words have 4, 1, 1 and 1 pieces, and the count is 3. In any order, only the three single pieces fit.
    made = objective(inputs_length=9, max_predictions=3, noise_density=0.4, whole_words=True)
    tokens = {"tokens": np.array([[10, 200, 201, 202, 11, 12, 13]], np.int32)}
    masks = examples(made, 50, tokens, table_of_words(150)).noise.mask
    assert (masks == [False] * 4 + [True] * 3).all()


def two_parts(name, count=400):
    """Return examples of one row. Its only full stops are at token 12, and at token 5 of the other window."""
    made = objective(name=name, inputs_length=32)
    tokens, others = np.arange(10, 39), np.arange(110, 139)
    tokens[11], others[4] = STOP, STOP
    rows = {"tokens": tokens[None].astype(np.int32), "others": others[None].astype(np.int32)}
    rows = {key: rows[key] for key in made.row_structs(1)}
    return tokens.tolist(), others.tolist(), examples(made, count, rows)


@pytest.mark.parametrize("name", ["mlm_nsp", "mlm_sop"])
def test_the_second_part_is_how_the_first_goes_on_or_it_is_not(name):
    tokens, others, found = two_parts(name)
    a, b = tokens[:12], tokens[12:]
    for targets, types, label in zip(found.targets, found.token_types, found.answers["next_sentence"], strict=True):
        first, second = a, b
        if label and name == "mlm_nsp":
            second = others[
                5 : 5 + len(b)
            ]  # this also begins with a sentence, so that the first token does not reveal the answer
        elif label:
            first, second = b, a
        assert targets.tolist() == [CLS_ID, *first, SEP_ID, *second, SEP_ID]
        assert types.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert set(found.answers["next_sentence"]) == {0, 1}


@pytest.mark.parametrize("name", ["mlm_nsp", "mlm_sop"])
def test_half_of_the_second_parts_do_not_belong(name):
    _, _, found = two_parts(name, 4000)
    assert abs(found.answers["next_sentence"].mean() - 0.5) < stats.norm.isf(FALSE_ALARM / 2) * 0.5 / 4000**0.5


def test_noise_lies_where_it_fell_in_the_two_parts():
    _, _, found = two_parts("mlm_nsp")
    for i in range(20):
        of_text = ~np.isin(found.targets[i], [CLS_ID, SEP_ID])
        assert (found.ordered[i] == found.targets[i][of_text]).all()
        assert (found.noise.mask[i] == found.weights[i][of_text]).all()
    assert (found.weights.sum(axis=1) == 5).all()


def test_parts_are_cut_at_ends_of_sentences_each_as_likely_or_anywhere():
    made = objective(name="mlm_sop", inputs_length=32)
    tokens = np.full((1, 29), 50, np.int32)
    stops = [3, 10, 20, 28]  # after the last stop, no token is left for B
    tokens[0, stops] = STOP
    for rows, places in ((tokens, [4, 11, 21]), (np.full((1, 29), 50, np.int32), range(1, 29))):
        found = examples(made, 6000, {"tokens": rows})
        lengths = np.sum(found.token_types == 0, axis=1) - 2
        cuts = np.where(found.answers["next_sentence"] == 1, 29 - lengths, lengths)
        counts = np.bincount(cuts, minlength=29)
        assert counts.sum() == counts[list(places)].sum()
        statistic, _ = stats.chisquare(counts[list(places)])
        assert statistic < stats.chi2.isf(FALSE_ALARM, len(places) - 1)


def test_the_same_key_makes_the_same_example_and_another_one_another():
    made = objective(name="mlm_nsp")
    first, again, other = (examples(made, 4, seed=seed) for seed in (0, 0, 1))
    assert (first.inputs == again.inputs).all() and (first.inputs != other.inputs).any()


def test_evaluation_is_the_usual_one_whatever_training_does():
    table = table_of_words(150)
    usual = examples(objective(), table=table).inputs
    for fields in (
        {"noise_density": 0.3, "replacement": "exact", "max_predictions": 9},
        {"masking": "bernoulli", "whole_words": True},
    ):
        assert (examples(objective(make_evaluation_objective, **fields), table=table).inputs == usual).all(), fields
        assert (examples(objective(**fields), table=table).inputs != usual).any(), fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"masking": "bernouli"}, "masking: unknown 'bernouli'; did you mean 'bernoulli'"),
        ({"replacement": "some"}, "replacement: unknown"),
        ({"noise_density": 0.0}, r"noise_density: must be above 0 and below 1"),
        ({"max_predictions": 0}, "max_predictions: must be at least 1"),
        ({"max_predictions": 5, "masking": "bernoulli"}, "max_predictions: cannot be combined with masking=bernoulli"),
        ({"inputs_length": 3}, "inputs_length: 3 is too short for a window"),
        ({"inputs_length": 4, "name": "mlm_nsp"}, "inputs_length: 4 is too short for a window"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        objective(**fields)


def test_it_needs_an_encoder_and_three_special_tokens():
    with pytest.raises(UserError, match=r"mlm has no meaning on .*; it works on encoder"):
        make_objective(FIELDS, "decoder", VOCABULARY)
    with pytest.raises(UserError, match=r"mlm needs \[CLS\], \[SEP\], but the tokenizer does not have"):
        make_objective(FIELDS, "encoder", Vocabulary.synthetic(PIECES, 10, (MASK,)))
    assert special_tokens({"specials": None}, FIELDS, "encoder") == (MASK, CLS, SEP)


def test_an_answer_on_an_encoder_stands_between_cls_and_sep():
    fields = FIELDS | {"inputs_length": 8}
    row = {"inputs": jnp.array([[40, 41, 42, 1, 0, 0, 0]]), "inputs_segment_ids": jnp.array([[1, 1, 1, 1, 0, 0, 0]])}
    tagging = make_objective(fields | {"name": "tagging"}, "encoder", VOCABULARY, ("B-X", "O"))
    tags = jnp.array([[1, -1, 0, -1, -1, -1, -1]])
    made = make_batch(tagging, jax.random.split(jax.random.key(0), 1), row | {"answers": tags}, VOCABULARY.table)
    assert made.inputs[0].tolist() == [CLS_ID, 40, 41, 42, SEP_ID, 0, 0, 0]
    assert made.inputs_segment_ids[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert made.answers["tagger"][0].tolist() == [-1, 1, -1, 0, -1, -1, -1, -1] and made.weights.sum() == 0
    labels = make_objective(fields | {"name": "supervised"}, "encoder", VOCABULARY, ("x", "y", "z"))
    row["answers"] = jnp.array([2])
    assert {name: value.shape for name, value in row.items()} == {
        name: struct.shape for name, struct in labels.row_structs(1).items()
    }
    made = make_batch(labels, jax.random.split(jax.random.key(0), 1), row, VOCABULARY.table)
    assert made.answers["classifier"].tolist() == [2] and made.weights.sum() == 0 and made.inputs[0, 4] == SEP_ID


def test_free_text_needs_a_decoder():
    with pytest.raises(UserError, match="free-text targets need a decoder"):
        make_objective(FIELDS | {"name": "supervised"}, "encoder", VOCABULARY)
