"""Rows: any of them from its index alone, as though documents were laid end to end and cut."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from t5lite.data import rows as rows_module
from t5lite.data import store as store_module
from t5lite.data.packing import PackingPlan, pair_plan, plan_one_per_row
from t5lite.data.rows import PackedPairs, RowSource, TrainRows, Windows, clip, evaluation_rows, prefetch
from t5lite.data.store import Span, StoreWriter, TokenStore
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS


def make_store(folder, lengths, rows=60_000, eos=EOS):
    """Documents of `lengths` tokens and an EOS each. No token is repeated, so that any mistake in place shows."""
    counter = iter(range(3, 60_000))
    documents = [[*(next(counter) for _ in range(length)), eos] for length in lengths]
    writer = StoreWriter(folder, rows, eos)
    tokens = np.array([token for document in documents for token in document], np.int32)
    writer.append(tokens, np.cumsum([len(document) for document in documents], dtype=np.int64))
    writer.close({})
    return TokenStore(folder), documents


def naive_windows(documents, start, stop, length, with_eos):
    """(tokens, segment ids) of each window, by slicing a list; segments count from each window's first document."""
    stream = [(token, number) for number, document in enumerate(documents) for token in document]
    stream = [(token, number) for token, number in stream[start:stop] if with_eos or token != EOS]
    windows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    return [([t for t, _ in window], [1 + n - window[0][1] for _, n in window]) for window in windows]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_windows_are_slices_of_the_documents_laid_end_to_end(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=25), label="documents")
    shard = data.draw(st.integers(1, 40), label="tokens a shard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_TOKENS", shard)
        store, documents = make_store(tmp_path_factory.mktemp("store"), lengths)
    length = data.draw(st.integers(1, 15), label="window")
    with_eos = data.draw(st.booleans(), label="with EOS")
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, store.num_tokens)] * 2), label="span"))
    head, tail = Span(store, start, stop).split(data.draw(st.floats(0, 1), label="share"))
    for span in (Span.cover(store), head, tail):
        windows = Windows(span, length, with_eos, segments=with_eos)
        expected = naive_windows(documents, span.start, span.stop, length, with_eos)
        assert len(windows) == len(expected)
        rows = windows.fetch(np.arange(len(expected)))
        assert rows["tokens"].tolist() == [tokens for tokens, _ in expected]
        assert rows["tokens"].dtype == np.int32
        if with_eos:
            assert rows["segment_ids"].tolist() == [segments for _, segments in expected]
            assert rows["segment_ids"].dtype == np.int32


def test_a_window_that_begins_inside_a_document_counts_its_segments_from_one(tmp_path):
    store, _ = make_store(tmp_path, [4, 1, 3])  # 3 4 5 6 1 | 7 1 | 8 9 10 1
    rows = Windows(Span.cover(store), 4, with_eos=True, segments=True).fetch(np.array([1, 0]))
    assert rows["tokens"].tolist() == [[1, 7, 1, 8], [3, 4, 5, 6]]
    assert rows["segment_ids"].tolist() == [[1, 2, 2, 3], [1, 1, 1, 1]]


@pytest.mark.parametrize("with_eos", [False, True])
def test_another_window_shares_no_document_where_that_can_be(tmp_path, with_eos):
    store, documents = make_store(tmp_path, [40, 3, 900, 2, 2, 2, 30, 7, 500, 9])  # few are apart from the long ones
    windows = Windows(Span.cover(store), 12, with_eos, segments=False, others=True)
    rows = windows.fetch(np.arange(len(windows)))
    assert (
        rows["tokens"] == Windows(Span.cover(store), 12, with_eos, False).fetch(np.arange(len(windows)))["tokens"]
    ).all()
    of_token = {token: number for number, document in enumerate(documents) for token in document[:-1]}
    for tokens, others in zip(rows["tokens"], rows["others"], strict=True):
        shared, theirs = ({of_token[t] for t in window if t != EOS} for window in (tokens, others))
        assert not shared & theirs


def test_another_window_follows_from_the_index_alone_and_is_spread_over_the_text(tmp_path):
    store, _ = make_store(tmp_path, [10] * 800)
    windows = Windows(Span.cover(store), 10, with_eos=False, segments=False, others=True)
    rows = windows.fetch(np.arange(800))
    for index in (0, 17, 799):
        alone = windows.fetch(np.array([index]))
        assert (alone["others"] == rows["others"][index]).all()
    first = rows["others"][:, 0] // 10
    counts = np.bincount(first * 8 // 800, minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-6 and abs(np.corrcoef(first, np.arange(800))[0, 1]) < 0.18


def test_a_text_of_one_document_has_no_other(tmp_path):
    store, _ = make_store(tmp_path, [40])
    rows = Windows(Span.cover(store), 10, with_eos=False, segments=False, others=True).fetch(np.arange(4))
    assert rows["others"].shape == (4, 10)


def test_windows_without_eos_never_show_one(tmp_path):
    store, documents = make_store(tmp_path, [3, 0, 0, 5, 1, 0, 7])
    tokens = Windows(Span.cover(store), 3, with_eos=False, segments=False).fetch(np.arange(5))["tokens"]
    assert tokens.ravel().tolist() == [t for document in documents for t in document if t != EOS][:15]


def test_rows_are_fetched_in_any_order_and_repeated(tmp_path):
    store, _ = make_store(tmp_path, [5, 2, 9, 4, 0, 6])
    for with_eos in (False, True):
        windows = Windows(Span.cover(store), 4, with_eos, segments=with_eos)
        everything = windows.fetch(np.arange(len(windows)))
        order = np.array([3, 0, 3, 2])
        assert {k: v.tolist() for k, v in windows.fetch(order).items()} == {
            k: v[order].tolist() for k, v in everything.items()
        }


def test_an_empty_store_and_a_text_shorter_than_a_window_have_no_rows(tmp_path):
    for lengths in ([], [2]):
        store, _ = make_store(tmp_path / str(len(lengths)), lengths)
        for with_eos in (False, True):
            assert len(Windows(Span.cover(store), 4, with_eos, False)) == 0


def test_positions_beyond_two_to_the_31_do_not_overflow():
    class Huge:
        ends = np.arange(1, 6, dtype=np.int64) * 2**31

        def __init__(self):
            self.asked = []

        def read(self, start, stop):
            self.asked.append((start, stop))
            return np.full(stop - start, 7, np.uint16)

    for with_eos in (False, True):
        store = Huge()
        span = Span(store, 0, 5 * 2**31)
        windows = Windows(span, 2**10, with_eos, False)
        last = len(windows) - 1
        windows.fetch(np.array([last], np.int32))
        ((start, stop),) = store.asked
        assert 5 * 2**31 - 2**11 <= start < stop <= 5 * 2**31


# Pairs


def test_pairs_that_share_a_row_stand_side_by_side_on_both_sides(tmp_path):
    store, _ = make_store(tmp_path, [2, 1, 1, 0, 7, 6])  # pairs (3 4 1, 5 1) (6 1, 1) (7…13 1, 14…19 1)
    plan = PackingPlan(np.array([1, 0, 2]), np.array([0, 2, 3]), inputs_length=6, targets_length=4)
    rows = PackedPairs(store, plan).fetch(np.array([0, 1]))
    assert rows["inputs"].tolist() == [[6, 1, 3, 4, 1, 0], [7, 8, 9, 10, 11, 1]]
    assert rows["inputs_segment_ids"].tolist() == [[1, 1, 2, 2, 2, 0], [1] * 6]
    assert rows["targets"].tolist() == [[1, 5, 1, 0], [14, 15, 16, 1]]
    assert rows["targets_segment_ids"].tolist() == [[1, 2, 2, 0], [1] * 4]
    assert {values.dtype for values in rows.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("eos", [0, 50_256])
def test_windows_of_a_tokenizer_with_another_eos_end_their_segments_there(tmp_path, eos):
    store, _ = make_store(tmp_path, [2, 1, 3], eos=eos)  # 3 4 | 5 | 6 7 8 |
    assert store.eos == eos and TokenStore(tmp_path).card["eos"] == eos
    (row,) = Windows(Span.cover(store), 9, True, segments=True).fetch(np.array([0]))["segment_ids"]
    assert row.tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 3]
    (row,) = Windows(Span.cover(store), 6, False, segments=False).fetch(np.array([0]))["tokens"]
    assert row.tolist() == [3, 4, 5, 6, 7, 8]


def test_what_stands_in_front_of_pairs_takes_a_place_of_each(tmp_path):
    store, _ = make_store(tmp_path, [2, 1, 1, 0, 7, 6], eos=2)
    plan = PackingPlan(np.array([1, 0, 2]), np.array([0, 2, 3]), inputs_length=7, targets_length=5)
    rows = PackedPairs(store, plan, bos=0).fetch(np.array([0, 1]))
    assert rows["inputs"].tolist() == [[0, 6, 2, 0, 3, 4, 2], [0, 7, 8, 9, 10, 11, 2]]
    assert rows["targets"].tolist() == [[0, 2, 0, 5, 2], [0, 14, 15, 16, 2]]
    assert rows["targets_segment_ids"].tolist() == [[1, 1, 2, 2, 2], [1] * 5]


def test_pairs_are_packed_with_what_stands_in_front_of_them(tmp_path):
    store, _ = make_store(tmp_path, [2, 2] * 4)  # three tokens a side, four with one in front
    assert len(pair_plan(store, 8, 8, True)) == len(pair_plan(store, 8, 8, True, bos=0)) == 2
    assert (len(pair_plan(store, 12, 12, True)), len(pair_plan(store, 12, 12, True, bos=0))) == (1, 2)


def test_pairs_one_to_a_row_keep_their_order(tmp_path):
    store, _ = make_store(tmp_path, [2, 1, 1, 0, 7, 6])
    source = PackedPairs(store, plan_one_per_row(np.array([2, 0]), 9, 9))
    assert len(source) == 2
    assert source.fetch(np.array([1]))["inputs"].tolist() == [[3, 4, 1, 0, 0, 0, 0, 0, 0]]


def test_a_clipped_document_ends_in_eos():
    tokens = np.array([5, 6, 7, EOS], np.uint16)
    assert clip(tokens, 4).tolist() == [5, 6, 7, 1]
    assert clip(tokens, 3).tolist() == [5, 6, 1]
    assert clip(tokens, 1).tolist() == [1]


# The order of training


class Numbers(RowSource):
    """A row source whose row i is i, plus an offset."""

    def __init__(self, length, offset=0):
        self.length, self.offset = length, offset

    def __len__(self):
        return self.length

    def fetch(self, indices):
        assert indices.min() >= 0 and indices.max() < self.length
        return {"tokens": self.offset + np.stack([indices, indices], axis=1).astype(np.int32)}


def values(rows):
    return rows["tokens"][:, 0].tolist()


def epoch(number, length, seed=0):
    rows = TrainRows([(Numbers(length), 1.0)], 1, seed)
    return [values(rows(step))[0] for step in range(number * length, (number + 1) * length)]


@pytest.mark.parametrize("length", [1, 2, 10, 1000, 5000])
def test_in_every_epoch_each_row_comes_once(length):
    for number in (0, 1, 5):
        assert sorted(epoch(number, length)) == list(range(length))


@pytest.mark.parametrize("length", [200, 5000])
def test_each_epoch_and_each_seed_has_an_order_of_its_own(length):
    orders = [epoch(number, length, seed) for number, seed in [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2**31)]]
    orders.append(list(range(length)))
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two random orders agree in 1 place on average (Poisson); in 10 or more once in ten million.
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


MIXTURE = [(Numbers(100), 2.0), (Numbers(37, 1000), 1.0), (Numbers(5, 2000), 0.5)]


def test_the_rows_of_a_step_do_not_depend_on_how_one_got_there():
    reader = TrainRows(MIXTURE, 8, seed=3)
    walked = [values(reader(step)) for step in range(50)]
    assert [values(TrainRows(MIXTURE, 8, seed=3)(step)) for step in (49, 0, 20)] == [walked[i] for i in (49, 0, 20)]
    assert values(reader(7)) == walked[7]


def test_a_batch_goes_on_where_the_last_one_ended_whatever_its_size():
    small, large = TrainRows(MIXTURE, 4, seed=3), TrainRows(MIXTURE, 8, seed=3)
    for step in range(10):
        assert values(small(2 * step)) + values(small(2 * step + 1)) == values(large(step))


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_hosts_shares_together_are_the_batch(hosts):
    whole = TrainRows(MIXTURE, 8, seed=3)
    shares = [TrainRows(MIXTURE, 8, seed=3, places=np.arange(8)[host::hosts]) for host in range(hosts)]
    for step in (0, 1, 33):
        batch = np.empty(8, np.int32)
        for host, share in enumerate(shares):
            batch[host::hosts] = values(share(step))
        assert batch.tolist() == values(whole(step))


def test_a_host_fetches_no_more_than_its_share():
    fetched = []

    class Counting(Numbers):
        def fetch(self, indices):
            fetched.extend(indices)
            return super().fetch(indices)

    share = TrainRows([(Counting(100), 1.0)], 8, 0, places=[6, 2])
    assert values(share(4)) == [values(TrainRows([(Numbers(100), 1.0)], 8, 0)(4))[i] for i in (6, 2)]
    assert len(fetched) == 2


def test_every_member_of_a_mixture_is_read_in_epochs_of_its_own():
    reader = TrainRows(MIXTURE, 35, seed=0)
    seen = np.concatenate([values(reader(step)) for step in range(100)])
    for source, _ in MIXTURE:
        mine = seen[(seen >= source.offset) & (seen < source.offset + 1000)]
        times = np.bincount(mine - source.offset, minlength=len(source))
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.7, 0.2, 0.1), (5, 1e-2), (1 / 3, 1 / 3, 1 / 3)])
@pytest.mark.parametrize("length", [10, 10**6])
def test_a_mixture_has_its_weights_in_every_stretch(weights, length):
    reader = TrainRows([(Numbers(length), weight) for i, weight in enumerate(weights)], 50, seed=0)
    members = np.array([member for step in range(200) for member, _ in reader.locate(step)])
    shares = np.array(weights) / sum(weights)
    counts = np.bincount(members, minlength=len(weights))
    # Of 10,000 draws. The order is not random: a right one is nearer to the weights than draws would be, a wrong one
    # fails the chi-square test, whose false alarms would be one in a thousand of random draws.
    assert stats.chisquare(counts, shares * counts.sum()).pvalue > 1e-3
    for stop in range(100, 10_001, 100):
        assert np.abs(np.bincount(members[:stop], minlength=len(weights)) - shares * stop).max() <= len(weights)


def test_a_text_shorter_than_a_row_is_refused():
    with pytest.raises(UserError, match="shorter than one row"):
        TrainRows([(Numbers(10), 1.0), (Numbers(0), 1.0)], 4, 0)


# Evaluation


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 64))
def test_evaluation_rows_are_evenly_spaced_each_once_and_the_last_batch_is_filled(length, rows, batch_size):
    batches = list(evaluation_rows(Numbers(length), rows, batch_size))
    valid = np.concatenate([batch["valid"] for batch in batches])
    seen = np.concatenate([values(batch) for batch in batches])[valid]
    assert all(len(batch["tokens"]) == batch_size for batch in batches)
    assert len(batches) == -(-len(seen) // batch_size)
    assert len(set(seen.tolist())) == len(seen) == min(rows, length)
    assert seen[0] == 0
    if len(seen) > 1:
        assert seen[-1] == length - 1
        gaps = np.diff(seen)
        assert gaps.max() - gaps.min() <= 1
    assert not valid[len(seen) :].any()


# Prefetching


def rows_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("rows")]


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 4), (5, 5), (0, 1), (7, 9)])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetched_rows_come_in_order(start, stop, depth):
    assert list(prefetch(lambda step: {"step": step}, start, stop, depth)) == [{"step": i} for i in range(start, stop)]
    assert rows_threads() == []


def test_the_next_rows_are_computed_while_these_are_used():
    computed = []
    rows = prefetch(lambda step: computed.append(step) or {"step": step}, 0, 100, depth=3)
    next(rows)
    deadline = time.monotonic() + 10
    while len(computed) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert computed == [0, 1, 2, 3]  # and no further ahead
    rows.close()


def test_abandoned_prefetching_ends_its_thread():
    rows = prefetch(lambda step: {"step": step}, 0, 10**9)
    assert next(rows) == {"step": 0}
    assert rows_threads()
    rows.close()
    assert rows_threads() == []


def test_an_exception_in_the_thread_reaches_the_reader_at_its_step():
    def fetch(step):
        if step == 3:
            raise UserError("row 3 is broken")
        return {"step": step}

    rows = prefetch(fetch, 0, 10)
    assert [next(rows)["step"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="row 3"):
        next(rows)
    assert rows_threads() == []


def test_the_module_needs_no_jax():
    assert "jax" not in vars(rows_module)
