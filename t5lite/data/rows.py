"""Rows: the arrays that the host hands to the device. Any row can be computed from its index alone.

    Windows      {"tokens": [n, L]}
                 with "segment_ids" [n, L] if the objective separates documents
                 with "others" [n, L], windows of other documents, if it compares windows
                 with "begins" [n, L], 1 where a document begins, if bytes are counted
    PackedPairs  {"inputs": [n, L], "inputs_segment_ids", "targets": [n, T], "targets_segment_ids"}
                 with "pairs" [n], the number of each row's pair, if answers are compared with whole targets

A row source has a length and `fetch(indices)`. `TrainRows` gives the rows of step N. Training reads a stream of rows
that are shuffled, repeated and mixed. Grain's random-access datasets compute which row stands at each place of the
stream. Each host fetches only its share of the batch. All arrays are int32.
"""

import concurrent.futures
import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from t5lite.data.cut import Cut, count_cut
from t5lite.data.packing import PackingPlan
from t5lite.data.references import References
from t5lite.data.store import Span, TokenStore
from t5lite.system.errors import UserError

MAX_OTHERS_TRIES = 8  # random windows that `_choose_others` tries before the first and the last window
FEW_ROWS = 4096  # a shorter source is shuffled by NumPy instead of Grain
Rows = dict[str, np.ndarray]


class RowSource(Protocol):
    """A sequence of rows that can be fetched by index."""

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray) -> Rows: ...

    def choose(self, count: int) -> np.ndarray:
        """Return the indices of about `count` rows to evaluate, the same in every run."""
        return space_evenly(len(self), count)


@dataclasses.dataclass(frozen=True)
class Windows(RowSource):
    """Windows of `length` tokens, cut end to end from `span`. Last tokens that do not fill a window are dropped.

    with_eos: whether the EOS tokens between documents are in the stream. segments: add "segment_ids", which number the
    documents in a window from 1 (needs with_eos). others: add "others": for each window, a second window without a
    common document, if the span has such a window. The index of the first window determines the second. begins: add
    "begins", where documents begin.
    """

    span: Span
    length: int
    with_eos: bool
    segments: bool
    others: bool = False
    begins: bool = False

    def __post_init__(self):
        # Positions count all tokens, or all tokens but EOS if not with_eos. `_ends`: the positions where documents end.
        # `_start`, `_stop`: the positions where the span begins and ends.
        ends, start, stop = np.asarray(self.span.store.ends), self.span.start, self.span.stop
        if not self.with_eos:
            before = np.searchsorted(ends, [start, stop], side="right")
            ends, start, stop = ends - np.arange(1, len(ends) + 1), start - int(before[0]), stop - int(before[1])
        for name, value in (("_ends", ends), ("_start", start), ("_stop", stop)):
            object.__setattr__(self, name, value)

    @property
    def byte_scale(self) -> float:
        """Bytes of the text, divided by the bytes that its tokens stand for. 1 if the tokenizer loses no bytes."""
        card = self.span.store.card
        return card["bytes_of_text"] / card["bytes_in_tokens"] if card["bytes_in_tokens"] else 1.0

    def __len__(self) -> int:
        return (self._stop - self._start) // self.length

    def fetch(self, indices: np.ndarray) -> Rows:
        """Return the windows at `indices` [n], each in [0, len(self))."""
        tokens = self._read_tokens(indices)
        rows = {"tokens": tokens}
        if self.segments:
            is_eos = tokens == self.span.store.eos
            rows["segment_ids"] = 1 + np.cumsum(is_eos, axis=1, dtype=np.int32) - is_eos
        if self.others:
            rows["others"] = self._read_tokens(self._choose_others(indices))
        if self.begins:
            rows["begins"] = self._mark_begins(indices)
        return rows

    def _first_positions(self, indices: np.ndarray) -> np.ndarray:
        """Return the position of each window's first token."""
        return self._start + np.asarray(indices, np.int64) * self.length

    def _find_documents(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the document of the first and of the last token of each window."""
        firsts = self._first_positions(indices)
        return tuple(np.searchsorted(self._ends, each, side="right") for each in (firsts, firsts + self.length - 1))

    def _mark_begins(self, indices: np.ndarray) -> np.ndarray:
        begins = np.zeros((len(indices), self.length), np.int32)
        for row, first in enumerate(self._first_positions(indices).tolist()):
            # A document begins where the document before it ends. The first document begins at 0.
            low, high = np.searchsorted(self._ends, [first, first + self.length])
            begins[row, self._ends[low:high] - first] = 1
            if first == 0:
                begins[row, 0] = 1
        return begins

    def _read_tokens(self, indices: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(indices), self.length), np.int32)
        store, firsts = self.span.store, self._first_positions(indices).tolist()
        if self.with_eos:
            for row, first in enumerate(firsts):
                tokens[row] = store.read(first, first + self.length)
            return tokens
        # The index of the document at a position is the number of EOS tokens before it.
        documents, lasts = (each.tolist() for each in self._find_documents(indices))
        for row, (first, document, last) in enumerate(zip(firsts, documents, lasts, strict=True)):
            start = first + document
            window = store.read(start, first + self.length + last)
            tokens[row] = window if document == last else np.delete(window, store.ends[document:last] - 1 - start)
        return tokens

    def _choose_others(self, indices: np.ndarray) -> np.ndarray:
        """Return indices [n]: for each window of `indices`, a window without a common document, if there is one."""
        indices = np.asarray(indices, np.int64)
        tries = np.arange(MAX_OTHERS_TRIES, dtype=np.uint64)
        numbers = indices[:, None].astype(np.uint64) * np.uint64(MAX_OTHERS_TRIES) + tries
        drawn = _hash_numbers(numbers) % np.uint64(len(self))
        # If some window shares no document, the first or the last window shares none.
        first_and_last = np.broadcast_to([0, len(self) - 1], (len(indices), 2))
        candidates = np.concatenate([drawn.astype(np.int64), first_and_last], axis=1)
        (first, last), (candidate_first, candidate_last) = map(self._find_documents, (indices, candidates))
        is_apart = (candidate_last < first[:, None]) | (candidate_first > last[:, None])
        return candidates[np.arange(len(indices)), np.argmax(is_apart, axis=1)]


def _hash_numbers(numbers: np.ndarray) -> np.ndarray:
    """Hash numbers to pseudo-random uint64, by the finalizer of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class PackedPairs(RowSource):
    """Rows of (inputs, targets) pairs. `plan` says which pairs share a row. `bos` stands in front of each side.

    with_pairs: add "pairs", the number of each row's pair, for a plan with one pair in each row. more: the references
    of the pairs beside their targets.
    """

    store: TokenStore
    plan: PackingPlan
    bos: int | None = None
    with_pairs: bool = False
    more: References | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def _pair_lengths(self, pairs: np.ndarray) -> np.ndarray:
        return self.store.pair_lengths()[pairs] + (self.bos is not None)

    def count_cut(self) -> Cut:
        """Count the inputs and targets that are cut, over all pairs, and their lost tokens."""
        return count_cut(self._pair_lengths(self.plan.order), self.plan.limits)

    def count_lost_target_tokens(self, indices: np.ndarray) -> int:
        """Count the tokens that are cut off the targets of the rows at `indices`. Each row must hold one pair."""
        lengths = self._pair_lengths(self.plan.order[indices])[:, 1]
        return int(np.maximum(lengths - self.plan.limits[1], 0).sum())

    def references(self, pair: int) -> list[np.ndarray]:
        """Return the tokens of each reference of a pair, with EOS, the targets first. Nothing is cut off."""
        more = [] if self.more is None else self.more.read(pair)
        return [self.store.document(2 * pair + 1), *more]

    def fetch(self, indices: np.ndarray) -> Rows:
        lengths = {"inputs": self.plan.inputs_length, "targets": self.plan.targets_length}
        rows = {name: np.zeros((len(indices), length), np.int32) for name, length in lengths.items()}
        rows |= {f"{name}_segment_ids": np.zeros((len(indices), n), np.int32) for name, n in lengths.items()}
        front, limits = np.array([] if self.bos is None else [self.bos], np.int32), self.plan.limits
        for row, index in enumerate(indices):
            start = dict.fromkeys(lengths, 0)
            for segment, pair in enumerate(self.plan.pairs(int(index)), start=1):
                for side, name in enumerate(lengths):
                    document = self.store.document(2 * int(pair) + side)
                    tokens = np.concatenate([front, clip(document, limits[side] - len(front))])
                    stop = start[name] + len(tokens)
                    rows[name][row, start[name] : stop] = tokens
                    rows[f"{name}_segment_ids"][row, start[name] : stop] = segment
                    start[name] = stop
        return rows | {"pairs": self.plan.order[indices].astype(np.int32)} if self.with_pairs else rows


def clip(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cut a document that ends in EOS to at most `length` tokens. The result ends in EOS too."""
    return tokens if len(tokens) <= length else np.concatenate([tokens[: length - 1], tokens[-1:]])


class TrainRows:
    """The rows of step N, a pure function of N. They are shuffled anew in every epoch, repeated without end, and mixed
    by weight.

    members: a pair (source, weight) for each source of a mixture. places: the indices in a batch of the rows that this
    host fetches; None: all rows.
    """

    def __init__(
        self,
        members: Sequence[tuple[RowSource, float]],
        batch_size: int,
        seed: int,
        places: Sequence[int] | None = None,
    ):
        for source, _ in members:
            if len(source) == 0:
                raise UserError(
                    "data.train: the text is shorter than one row; give more text, or set smaller lengths in "
                    "config.objective"
                )
        self.members = [source for source, _ in members]
        self.batch_size = batch_size
        self._places = range(batch_size) if places is None else [int(place) for place in places]
        orders = [_make_order(len(source), member, seed) for member, (source, _) in enumerate(members)]
        smallest = min(weight for _, weight in members)
        # Grain expresses weights in hundredths of the smallest weight, rounded down. Adding 0.005 makes Grain round to
        # the nearest hundredth.
        weights = [weight / smallest + (0.005 if weight > smallest else 0) for _, weight in members]
        self._order = orders[0] if len(orders) == 1 else _import_grain().MapDataset.mix(orders, weights)

    def locate(self, step: int) -> list[tuple[int, int]]:
        """Return (member, row index) for each of this host's rows in the batch of `step`."""
        return [self._order[step * self.batch_size + place] for place in self._places]

    def __call__(self, step: int) -> Rows:
        places = self.locate(step)
        rows: Rows = {}
        for member, source in enumerate(self.members):
            from_member = [i for i, (m, _) in enumerate(places) if m == member]
            if not from_member:
                continue
            fetched = source.fetch(np.array([places[i][1] for i in from_member]))
            for name, values in fetched.items():
                rows.setdefault(name, np.zeros((len(places), *values.shape[1:]), values.dtype))[from_member] = values
        return rows


def _import_grain() -> Any:
    import grain  # here, because `bench` does not need it

    return grain


def _make_order(length: int, member: int, seed: int) -> Any:
    """Return the endless shuffled order of a member, a grain.MapDataset: (member, row index) at each place."""
    grain = _import_grain()
    if length >= FEW_ROWS:
        # Repeat after shuffle: Grain then shuffles every epoch with a different seed.
        rows = grain.MapDataset.range(length).seed(seed + member).shuffle()
        return rows.map(lambda index: (member, int(index))).repeat()

    # Grain's shuffle is slow for short sources: the shorter the source, the longer a row takes, up to 4 ms for a source
    # of ten rows.
    @functools.lru_cache(64)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, member, epoch]).permutation(length)

    places = grain.MapDataset.range(sys.maxsize)
    return places.map(lambda place: (member, int(order(place // length)[place % length])))


def space_evenly(length: int, count: int) -> np.ndarray:
    """Return at most `count` indices below `length`, int64, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)


def evaluation_rows(source: RowSource, rows: int, batch_size: int, places: np.ndarray | None = None) -> Iterator[Rows]:
    """Yield batches with the rows that `source` chooses for a count of `rows`. "valid" [n] is bool.

    The last batch is filled with repeated rows, and "valid" is False for them. places: the indices in a batch of the
    rows that this host fetches; None: all rows.
    """
    indices = source.choose(rows)
    places = np.arange(batch_size) if places is None else places
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        filled = np.resize(chosen, batch_size)
        yield {**source.fetch(filled[places]), "valid": places < len(chosen)}


def prefetch(function: Callable[[int], Rows], start: int, stop: int, depth: int = 2) -> Iterator[Rows]:
    """Yield function(start), …, function(stop − 1). Another thread computes the results, up to `depth` steps ahead."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
        waiting = deque(pool.submit(function, step) for step in range(start, min(start + depth, stop)))
        for step in range(start + depth, stop + depth):
            rows = waiting.popleft().result()
            if step < stop:
                waiting.append(pool.submit(function, step))
            yield rows
