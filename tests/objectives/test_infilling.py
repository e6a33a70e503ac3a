"""BART's infilling, spans of whole words with Poisson lengths, and combinations of BART's noises."""

import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from t5lite.objectives import noise, order, rules
from t5lite.objectives.denoisers import BART_NOISES, combine_noises
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import MASK
from tests.objectives.made import (
    FALSE_ALARM,
    PLAIN,
    build,
    check_chances,
    check_uniform,
    examples,
    make,
    vocabulary,
    windows,
)

M = 999
IDS = rules.Ids(size=1000, ordinary=np.arange(3, 900), mask=M)
TOKENS = jnp.arange(10, 18)


def _bools(text):
    return jnp.array([c == "#" for c in text])


def _infill(mask, starts, inserts=0, seed=0):
    chosen = noise.Noise(_bools(mask), _bools(starts), jnp.int32(inserts))
    new, keep = rules.infill.apply(jax.random.key(seed), TOKENS, chosen, IDS)
    return new[keep].tolist()


@pytest.mark.parametrize(
    ("mask", "starts", "expected"),
    [
        (".##...#.", ".#....#.", [10, M, 13, 14, 15, M, 17]),
        (".####...", ".#.#....", [10, M, M, 15, 16, 17]),  # two spans without a token between them: two masks
        ("########", "#.......", [M]),
        ("########", "########", [M] * 8),
        ("#......#", "#......#", [M, 11, 12, 13, 14, 15, 16, M]),
        ("........", "........", [*range(10, 18)]),
    ],
)
def test_a_span_becomes_one_mask(mask, starts, expected):
    assert _infill(mask, starts) == expected


def test_an_insertion_is_a_mask_more_anywhere_and_takes_nothing_away():
    """Two insertions into `10 M 15 16 17`: 21 equally likely results, 15 of them different. False alarm 1e-4."""
    chosen = noise.Noise(_bools(".####..."), _bools(".#......"), jnp.int32(2))
    keys = jax.random.split(jax.random.key(0), 4000)
    new, keep = jax.jit(jax.vmap(lambda key: rules.infill.apply(key, TOKENS, chosen, IDS)))(keys)
    seen: dict[tuple, int] = {}
    for side in (np.asarray(row)[kept].tolist() for row, kept in zip(new, np.asarray(keep), strict=True)):
        assert [token for token in side if token != M] == [10, 15, 16, 17] and len(side) == 7
        seen[tuple(side)] = seen.get(tuple(side), 0) + 1
    # The insertions get two of seven places, and all pairs are equally likely. Inserted masks look like the old mask.
    expected: dict[tuple, int] = {}
    for pair in ((i, j) for i in range(7) for j in range(i)):
        rest = iter([10, M, 15, 16, 17])
        side = tuple(M if place in pair else next(rest) for place in range(7))
        expected[side] = expected.get(side, 0) + 1
    assert seen.keys() == expected.keys()
    check_chances([seen[side] for side in expected], np.array([*expected.values()]) / 21)


@pytest.mark.parametrize(
    ("word_starts", "first", "lengths", "mask", "starts"),
    [
        ("########", [2, 8], [3, 0], "..###...", "..#....."),
        ("########", [2, 5], [3, 1], "..####..", "..#..#.."),  # one begins directly after the other
        ("########", [5, 2], [1, 3], "..####..", "..#..#.."),
        ("########", [2, 3], [3, 3], "..####..", "..#....."),  # the second begins inside the first
        ("########", [2, 4], [1, 1], "..#.#...", "..#.#..."),
        ("########", [6, 8], [5, 0], "......##", "......#."),  # past the end
        ("########", [8, 1], [0, 2], ".##.....", ".#......"),  # one that is not used
        ("########", [8, 8], [3, 1], "........", "........"),
        ("#.##..#.", [1, 2], [1, 1], "..####..", "..##...."),  # words of 2, 1, 3 and 2 tokens
        ("#.##..#.", [0, 8], [3, 0], "######..", "#......."),
        ("..#..#.#", [0, 2], [1, 1], "..###..#", "..#....#"),  # the first two tokens belong to no word
        ("..#..#.#", [1, 0], [9, 1], "..######", "..#..#.."),
    ],
)
def test_spans_cover_whole_words(word_starts, first, lengths, mask, starts):
    is_start = _bools(word_starts)
    word = jnp.cumsum(is_start) - 1
    made = noise.make_word_spans(jnp.array(first), jnp.array(lengths), word, is_start)
    assert ["".join(".#"[int(token)] for token in side) for side in made] == [mask, starts]


def _fairseq_inputs(first, lengths, is_start):
    """Return the indices of the kept tokens, and -1 for each span, by the loops of fairseq's `add_whole_word_mask`."""
    length, side = len(is_start), list(range(len(is_start)))
    keep = [True] * length
    for begin in first:
        side[begin] = -1
    for begin, words in zip(first, lengths, strict=True):
        place = begin
        while place + 1 < length:
            words -= is_start[place + 1]
            if words <= 0 and is_start[place + 1]:
                break
            place += 1
            keep[place] = False
    return [token for token, kept in zip(side, keep, strict=True) if kept]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_overlaps_and_words_are_those_of_fairseq(data):
    length = 12
    is_start = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    is_start[data.draw(st.integers(0, length - 1))] = True
    places = np.flatnonzero(is_start)
    first = data.draw(st.lists(st.sampled_from(range(len(places))), unique=True, max_size=6))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(first), max_size=len(first)))
    unused = 6 - len(first)
    padded = np.array(first + [length] * unused), np.array(lengths + [0] * unused)
    mask, starts = jax.jit(noise.make_word_spans)(*padded, np.cumsum(is_start) - 1, is_start)
    ours = np.where(starts, -1, np.arange(length))[~np.asarray(mask) | np.asarray(starts)].tolist()
    assert ours == _fairseq_inputs([int(places[word]) for word in first], lengths, is_start)


def _poisson_lengths(budget, count, mean=3.0):
    keys = jax.random.split(jax.random.key(0), count)
    made = jax.jit(jax.vmap(lambda key: noise.poisson_lengths(key, jnp.int32(budget), budget, mean)))(keys)
    return [np.asarray(side) for side in made]


def test_span_lengths_are_poisson_before_the_last_is_trimmed():
    """The first 20 lengths for a budget of 153. A share of e^-3 has length 0. False alarm 1e-4."""
    lengths, counts = _poisson_lengths(153, 200)
    assert counts[:, :20].all()
    chances = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(9)])
    observed = np.bincount(np.minimum(lengths[:, :20], 9).ravel(), minlength=10)
    check_chances(observed, np.append(chances, 1 - chances.sum()))


@pytest.mark.parametrize(("budget", "mean"), [(1, 3.0), (7, 1.0), (153, 3.5), (500, 30.0)])
def test_lengths_are_drawn_until_they_meet_the_budget(budget, mean):
    lengths, counts = _poisson_lengths(budget, 200, mean)
    assert (lengths.sum(axis=1) == budget).all(), "the last one is trimmed"
    assert (np.diff(counts.astype(int), axis=1) <= 0).all(), "lengths that count come first"
    assert (lengths[~counts] == 0).all()
    last = lengths[np.arange(200), counts.sum(axis=1) - 1]
    assert (last > 0).all(), "no length is drawn after the budget is met"


def test_the_budget_is_rounded_up():
    for words, density, budget in ((10, 0.3, 3), (11, 0.3, 4), (510, 0.3, 153), (1, 0.3, 1), (20, 0.15, 3)):
        asked = noise.word_budgets(words, density)
        assert (asked[words], asked[0]) == (budget, 0)
    assert noise.word_budgets(20000, 0.3)[10250] == 3075, "in float32 the product is larger"


def _reference_share(rng, words, budget, mean):
    """Return the share of the words that becomes noise, computed with Python's loops."""
    lengths = []
    while sum(lengths) < budget:
        lengths.append(int(rng.poisson(mean)))
    lengths[-1] -= sum(lengths) - budget
    lengths = [length for length in lengths if length]
    covered = np.zeros(words, bool)
    for begin, length in zip(rng.permutation(words), lengths, strict=False):
        covered[begin : begin + length] = True
    return covered.mean()


def test_a_density_of_three_tenths_makes_about_27_percent_noise():
    """In 510 words, spans overlap. A t-test compares the mean share with that of Python's loops. False alarm 1e-4."""
    process = noise.poisson_words(noise.Settings(510, 0.3, 3.0))
    keys = jax.random.split(jax.random.key(0), 400)
    tokens = jnp.arange(510) + 3
    made = jax.device_get(jax.jit(jax.vmap(lambda key: process.sample(key, tokens, PLAIN.table)))(keys))
    shares = made.mask.mean(axis=1)
    assert 0.26 < shares.mean() < 0.28
    rng = np.random.default_rng(0)
    reference = [_reference_share(rng, 510, 153, 3.0) for _ in range(1000)]
    assert stats.ttest_ind(shares, reference, equal_var=False).pvalue > FALSE_ALARM
    # A share of e^-3 of about 51 spans is insertions. Their mean is within 5 standard deviations of a Poisson mean.
    drawn = 153 / 3
    assert made.inserts.mean() == pytest.approx(drawn * math.exp(-3), abs=5 * (drawn * math.exp(-3) / 400) ** 0.5)


def test_spans_begin_at_any_word():
    """The budget is one word. The span is each of the 9 words with equal chance. False alarm 1e-4."""
    process = noise.poisson_words(noise.Settings(9, 0.1, 3.0))
    keys = jax.random.split(jax.random.key(0), 4000)
    starts = jax.jit(jax.vmap(lambda key: process.sample(key, jnp.arange(9) + 3, PLAIN.table).starts))(keys)
    assert (np.asarray(starts).sum(axis=1) == 1).all()
    check_uniform(np.asarray(starts).argmax(axis=1), 0, 9)


def test_the_budget_counts_words_where_words_have_several_tokens():
    """Words have three tokens, and two tokens before them belong to no word. Noise is whole words, .27 of all words."""
    vocab = vocabulary(word_length=3)
    process = noise.poisson_words(noise.Settings(512, 0.3, 3.0))
    tokens = jnp.arange(4, 4 + 512)  # 4 and 5 continue a word that began before the window
    keys = jax.random.split(jax.random.key(0), 300)
    made = jax.device_get(jax.jit(jax.vmap(lambda key: process.sample(key, tokens, vocab.table)))(keys))
    words = made.mask[:, 2:].reshape(300, 170, 3)
    assert not made.mask[:, :2].any()
    assert (words == words[:, :, :1]).all()
    assert 0.26 < words.mean() < 0.28
    assert not made.starts[:, 2:].reshape(300, 170, 3)[:, :, 1:].any()


def test_a_window_without_a_word_has_no_noise():
    process = noise.poisson_words(noise.Settings(8, 0.3, 3.0))
    made = process.sample(jax.random.key(0), jnp.full(8, 4), vocabulary(word_length=3).table)
    assert not made.mask.any() and not made.starts.any() and made.inserts == 0


def test_there_is_a_mask_for_each_span_and_each_insertion():
    objective = build("text_infilling")
    inserts = 0
    for seen in examples(objective, windows(objective, 16)):
        assert seen.inputs.count(PLAIN.specials[MASK]) == seen.noise.starts.sum() + seen.noise.inserts
        inserts += seen.noise.inserts
    assert inserts > 0


def test_deleted_tokens_vanish_and_masked_ones_do_not():
    tokens, chosen = jnp.arange(10, 16), noise.make_noise(_bools("##..#."))
    for rule, expected in ((rules.drop_noise, [12, 13, 15]), (rules.noise_token_to_mask, [M, M, 12, 13, M, 15])):
        new, keep = rule.apply(jax.random.key(0), tokens, chosen, IDS)
        assert new[keep].tolist() == expected


def test_barts_noises_are_composed_in_its_order():
    for noises in itertools.permutations(("document_rotation", "token_deletion", "sentence_permutation")):
        made = combine_noises(noises)
        assert (made.process, made.density, made.order) == (noise.iid, 0.3, order.shuffle_sentences)
        assert made.inputs.per_noise == -1 and made.inputs != rules.drop_noise, "rotated"
        assert made.targets is rules.keep_all
    assert combine_noises(("document_rotation",)).order is order.keep_order
    assert combine_noises(("text_infilling",)).inputs is rules.infill


@pytest.mark.parametrize("name", BART_NOISES)
def test_bart_with_one_noise_is_that_noise(name):
    """Both objectives make the same examples from the same keys."""
    alone, composed = (build(kind, noises=[name]) for kind in (name, "bart"))
    tokens = windows(alone, 16)
    for one, other in zip(examples(alone, tokens), examples(composed, tokens), strict=True):
        assert one.inputs == other.inputs and one.targets == other.targets


def test_rotation_is_of_what_the_other_noises_left():
    objective = build("bart", inputs_length=11, noises=["document_rotation", "token_deletion"])
    for seen in examples(objective, windows(objective, 32)):
        clean = np.array(seen.window)[~np.asarray(seen.noise.mask)].tolist()
        first = clean.index(seen.inputs[0])
        assert seen.inputs[:-1] == clean[first:] + clean[:first]
        assert seen.targets[:-1] == seen.window


@pytest.mark.parametrize(
    ("noises", "message"),
    [
        (["text_infiling"], "did you mean 'text_infilling'"),
        (["text_infilling", "token_deletion"], "text_infilling and token_deletion exclude each other"),
        ([], "is empty"),
    ],
)
def test_noises_that_do_not_exist_or_exclude_each_other_are_refused(noises, message):
    with pytest.raises(UserError, match=message):
        build("bart", noises=noises)


def test_every_window_is_new_noise():
    objective = build("text_infilling")
    inputs = make(objective, np.repeat(windows(objective, 1), 16, axis=0)).inputs
    assert len(np.unique(inputs, axis=0)) == 16
