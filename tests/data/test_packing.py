"""Packing: every pair once, no row over its limits, little padding, and an order that the inputs alone decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite.data.packing import choose_sides, pack, plan_one_per_row
from t5lite.data.rows import PackedPairs
from t5lite.data.store import StoreWriter, TokenStore
from t5lite.system.vocabulary import EOS, PAD


def row_sizes(plan, lengths):
    limits = np.array([plan.inputs_length, plan.targets_length])
    return np.array([np.minimum(lengths[plan.pairs(row)], limits).sum(axis=0) for row in range(len(plan))])


def realistic(count, seed=0):
    """Lengths as those of summaries: inputs of 140 ± 130 tokens, targets of 19 ± 10."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal([4.6, 2.8], [0.8, 0.5], (count, 2))).astype(np.int64) + 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_pair_is_packed_once_and_no_row_is_over_its_limits(data):
    lengths = np.array(data.draw(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)))
    pairs = np.array(data.draw(st.permutations(range(len(lengths)))))[: data.draw(st.integers(1, len(lengths)))]
    plan = pack(lengths, pairs, *data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40))))
    assert sorted(plan.order) == sorted(pairs)
    assert sorted(np.concatenate([plan.pairs(row) for row in range(len(plan))])) == sorted(pairs)
    assert all(len(plan.pairs(row)) for row in range(len(plan)))
    assert (row_sizes(plan, lengths) <= [plan.inputs_length, plan.targets_length]).all()


def test_either_side_may_fill_a_row():
    lengths = np.array([[3, 2], [2, 2], [6, 1]])
    assert [pack(lengths, np.arange(3), 6, 4).pairs(row).tolist() for row in range(2)] == [[2], [0, 1]]
    assert [pack(lengths, np.arange(3), 11, 3).pairs(row).tolist() for row in range(2)] == [[0, 2], [1]]


def test_a_pair_longer_than_a_row_has_a_row_of_its_own_on_that_side():
    plan = pack(np.array([[99, 1], [1, 1], [5, 5]]), np.arange(3), 10, 10)
    assert [plan.pairs(row).tolist() for row in range(2)] == [[0], [2, 1]]


def test_no_pairs_make_no_rows():
    assert len(pack(np.zeros((0, 2), np.int64), np.arange(0), 4, 4)) == 0
    assert len(plan_one_per_row(np.arange(0), 4, 4)) == 0


def test_rows_of_realistic_pairs_are_at_least_95_percent_full():
    lengths = realistic(5000)
    plan = pack(lengths, np.arange(5000), 512, 256)
    assert row_sizes(plan, lengths)[:, 0].mean() / 512 > 0.95
    alone = np.minimum(lengths[:, 0], 512).mean() / 512
    assert alone < 0.3  # what a pair a row would have


def test_rows_do_not_gather_alike_pairs():
    """Sorting by length would fill rows too, and spoil the order."""
    lengths = realistic(5000)
    plan = pack(lengths, np.arange(5000), 512, 256)
    where = np.empty(5000)
    where[plan.order] = np.repeat(np.arange(len(plan)), np.diff(plan.starts))
    assert np.corrcoef(where, np.arange(5000))[0, 1] > 0.98
    assert abs(np.corrcoef(where, lengths[:, 0])[0, 1]) < 0.1


def drawn(count, inputs, targets, correlation, seed=0):
    """Log-normal lengths with these medians and a correlation between the two sides."""
    rng = np.random.default_rng(seed)
    first, other = rng.normal(size=(2, count))
    second = correlation * first + (1 - correlation**2) ** 0.5 * other
    return np.exp(np.log([inputs, targets]) + np.stack([first, second], axis=1) * [0.9, 0.8]).astype(np.int64) + 1


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize(
    ("inputs", "targets", "limits"),
    [(190, 2, (512, 64)), (110, 30, (512, 128)), (60, 15, (512, 64)), (40, 90, (512, 512))],
)
def test_rows_with_fitted_sides_are_at_least_89_percent_full(inputs, targets, limits, correlation):
    lengths = drawn(4000, inputs, targets, correlation)
    sides = choose_sides(lengths, *limits, may_grow=True)
    plan = pack(lengths, np.arange(4000), *sides, limits)
    sizes = np.minimum(lengths, limits)
    assert all((sizes[plan.pairs(row)].sum(axis=0) <= sides).all() for row in range(len(plan)))
    assert 1 - sizes.sum() / (len(plan) * sum(sides)) < 0.11
    assert sides[0] <= limits[0] and sides[1] <= 2 * limits[1]


def test_sides_by_hand():
    even = np.array([[64, 16], [32, 8]])
    assert choose_sides(even, 128, 64, True) == (128, 32)  # targets are short of their side
    assert choose_sides(even, 128, 24, True) == (96, 24)  # inputs are
    assert choose_sides(np.array([[128, 64], [64, 32]]), 128, 48, True) == (128, 56)  # the cut: (128, 48), (64, 32)
    assert choose_sides(np.array([[128, 64], [64, 32]]), 128, 48, False) == (128, 48)
    assert choose_sides(np.array([[9, 99], [1, 99], [1, 99], [1, 99]]), 9, 20, True) == (9, 40)  # twice the limit
    assert choose_sides(np.array([[90, 1], [90, 50]]), 100, 60, True) == (100, 56)  # the longest text fits
    assert choose_sides(np.array([[3, 1]]), 5, 3, True) == (5, 3) == choose_sides(np.zeros((0, 2)), 5, 3, True)


def test_the_plan_is_a_function_of_its_inputs():
    lengths, pairs = realistic(1000), np.random.default_rng(1).permutation(1000)
    first, again = pack(lengths, pairs, 512, 128), pack(lengths.copy(), pairs.copy(), 512, 128)
    assert first.order.tolist() == again.order.tolist() and first.starts.tolist() == again.starts.tolist()
    other = pack(lengths, np.arange(1000), 512, 128)
    assert first.order.tolist() != other.order.tolist()


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20),
    inputs_length=st.integers(1, 14),
    targets_length=st.integers(1, 14),
)
def test_packed_rows_hold_each_pair_whole_or_cut_with_its_eos(tmp_path_factory, sizes, inputs_length, targets_length):
    numbers = iter(range(3, 1000))
    documents = [[*(next(numbers) for _ in range(size)), EOS] for pair in sizes for size in pair]
    folder = tmp_path_factory.mktemp("store")
    writer = StoreWriter(folder, 1000)
    writer.append(np.concatenate(documents), np.cumsum([len(document) for document in documents]))
    writer.close({})
    lengths = np.array([len(document) for document in documents]).reshape(-1, 2)
    plan = pack(lengths, np.arange(len(sizes)), inputs_length, targets_length)
    rows = PackedPairs(TokenStore(folder), plan).fetch(np.arange(len(plan)))
    for side, (name, limit) in enumerate({"inputs": inputs_length, "targets": targets_length}.items()):
        tokens, segments = rows[name], rows[f"{name}_segment_ids"]
        assert tokens.shape == segments.shape == (len(plan), limit)
        assert ((segments == 0) == (tokens == PAD)).all()
        for row in range(len(plan)):
            for segment, pair in enumerate(plan.pairs(row), start=1):
                document = documents[2 * pair + side]
                cut = document if len(document) <= limit else [*document[: limit - 1], EOS]
                assert tokens[row][segments[row] == segment].tolist() == cut
            real = segments[row][segments[row] > 0]
            assert (np.diff(real) >= 0).all() and not segments[row][len(real) :].any()


def test_a_pair_a_row_is_one_a_row():
    plan = plan_one_per_row(np.array([4, 2, 0]), 5, 3)
    assert [plan.pairs(row).tolist() for row in range(len(plan))] == [[4], [2], [0]]
    assert (plan.inputs_length, plan.targets_length) == (5, 3)
