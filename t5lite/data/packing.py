"""Pack (inputs, targets) pairs before training: decide once, from their lengths, which pairs share a row.

    lengths (inputs, targets)   (3, 2) (2, 2) (6, 1)   into rows of 6 and 4
    plan                        row 0: pair 2          row 1: pairs 0, 1

A packer that worked during training would have state: a batch would not be a function of its step.

A row has a side of inputs and a side of targets. If one side is full, the rest of the other side is padding. So
`choose_sides` fits the lengths of the sides to the data, and `pack` chooses for a pair the row whose free places have
the most similar proportions.
"""

import dataclasses
import math
from collections import Counter

import numpy as np

from t5lite.data.store import TokenStore

PACKING = "2"  # the version of `pack` and `choose_sides`; a resumed run must have the rows of its beginning
BLOCK = 256  # pairs that are sorted by size before they are packed
OPEN_ROWS = 256  # the largest number of rows that are open for more pairs; if one more row opens, the oldest is closed
Lengths = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Row r holds the pairs order[starts[r] : starts[r + 1]].

    inputs_length, targets_length: the number of tokens that each side of a row can hold.
    cut: the number of tokens to which inputs and targets are cut. None: the lengths of the sides.
    """

    order: np.ndarray
    starts: np.ndarray
    inputs_length: int
    targets_length: int
    cut: Lengths | None = None

    @property
    def limits(self) -> Lengths:
        """The largest number of tokens of a text: of inputs, and of targets."""
        return (self.inputs_length, self.targets_length) if self.cut is None else self.cut

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pairs(self, row: int) -> np.ndarray:
        """Return the indices of the pairs in `row`."""
        return self.order[self.starts[row] : self.starts[row + 1]]


def plan_one_per_row(pairs: np.ndarray, inputs_length: int, targets_length: int) -> PackingPlan:
    """Return a plan with one pair in each row."""
    return PackingPlan(pairs, np.arange(len(pairs) + 1), inputs_length, targets_length)


def pack(
    lengths: np.ndarray, pairs: np.ndarray, inputs_length: int, targets_length: int, cut: Lengths | None = None
) -> PackingPlan:
    """Decide which pairs share a row of `inputs_length` and `targets_length` tokens.

    A block of 256 pairs after the other is packed, the largest pairs of a block first. Of the 256 newest rows with
    enough room, a pair goes to the one with the most similar proportions, else to a new row. Similar is measured by the
    scalar product, in which a side counts by its share of all tokens (Panigrahy et al. 2011, "Heuristics for vector bin
    packing", section 2.2).

    Args:
        lengths: [n, 2], tokens of the inputs and targets of every pair, with EOS. A text that is longer than its limit
            counts with the limit, because it will be cut.
        pairs: indices of the pairs, in the order of packing.
        cut: see `PackingPlan`.
    """
    sides = np.maximum([inputs_length, targets_length], 1)  # conversations have no targets
    sizes = np.minimum(lengths, sides if cut is None else np.minimum(cut, sides))
    shares = sizes / sides
    importance = shares[pairs].sum(axis=0) if len(pairs) else np.ones(2)
    importance = importance / max(importance.max(), 1)
    room = np.zeros((OPEN_ROWS, 2), np.int64)  # an unused slot has no room
    contents: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    rows: list[list[int]] = []
    oldest = 0
    for pair in _sort_blocks(pairs, shares.max(axis=1)).tolist():
        size = sizes[pair]
        fits = np.flatnonzero((room >= size).all(axis=1))
        if len(fits):
            free = room[fits] / sides
            likeness = (free * importance) @ shares[pair] / np.sqrt(np.square(free) @ importance + 1e-12)
            slot = fits[np.argmax(likeness.round(9))]
        else:
            slot, oldest = oldest, (oldest + 1) % OPEN_ROWS
            contents[slot] = []
            rows.append(contents[slot])
            room[slot] = sides
        contents[slot].append(pair)
        room[slot] -= size
    order = np.array([pair for row in rows for pair in row], np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    return PackingPlan(order, starts, inputs_length, targets_length, cut)


def _sort_blocks(pairs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the pairs with each block of `BLOCK` sorted by size, the largest first."""
    blocks = np.split(pairs, range(BLOCK, len(pairs), BLOCK))
    return np.concatenate([block[np.argsort(-sizes[block], kind="stable")] for block in blocks])


def choose_sides(lengths: np.ndarray, inputs_length: int, targets_length: int, may_grow: bool) -> Lengths:
    """Return the lengths of the sides of packed rows in which both sides fill up together.

    The longest text of each side must fit. The side with fewer tokens in the data is made shorter. If the longest
    inputs prevent this, the side of targets becomes longer, up to twice `targets_length`. All are multiples of 8, or
    the limits.

    Args:
        lengths: [n, 2], tokens of the inputs and targets of every pair.
        inputs_length, targets_length: the limits to which texts are cut.
        may_grow: whether the side of targets may be longer than `targets_length`.
    """
    limits = np.array([inputs_length, targets_length])
    sizes = np.minimum(lengths, limits)
    if not len(sizes) or not sizes.sum(axis=0).all():
        return inputs_length, targets_length
    (longest_inputs, longest_targets), (inputs, targets) = sizes.max(axis=0).tolist(), sizes.sum(axis=0).tolist()

    def round_up(length: float, limit: int) -> int:
        return min(-(-math.ceil(length) // 8) * 8, limit)

    if inputs_length * targets <= targets_length * inputs:
        return inputs_length, round_up(max(longest_targets, inputs_length * targets / inputs), targets_length)
    inputs_side = round_up(max(longest_inputs, targets_length * inputs / targets), inputs_length)
    needed = max(targets_length, inputs_side * targets / inputs)
    return inputs_side, round_up(needed, 2 * targets_length) if may_grow else targets_length


def choose_pairs(
    store: TokenStore, limit: int | None, per_label: int | None, seed: int, documents: int = 2
) -> np.ndarray:
    """Return the indices of pairs in a random order that `seed` fixes: the first `limit`; None: all.

    Args:
        per_label: keep the first `per_label` pairs of each target, in this order; None: all.
        documents: the number of documents of the store for each pair.
    """
    order = np.random.default_rng(seed).permutation(store.num_documents // documents)
    if per_label is not None:
        counts: Counter[bytes] = Counter()
        kept = []
        for pair in order.tolist():
            target = store.document(2 * pair + 1).tobytes()
            counts[target] += 1
            if counts[target] <= per_label:
                kept.append(pair)
        order = np.array(kept, np.int64)
    return order[:limit]


def pair_plan(
    store: TokenStore,
    inputs_length: int,
    targets_length: int,
    packed: bool,
    limit: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    per_label: int | None = None,
    sides: Lengths | None = None,
) -> PackingPlan:
    """Decide which pairs of `store` share a row.

    Args:
        limit: keep at most this many pairs; None: all.
        seed: fixes the random order of pairs that are packed or limited. Other pairs keep the store's order.
        bos: the id in front of the inputs and of the targets; None: no id.
        per_label: keep at most this many pairs of each target; None: all.
        sides: the lengths of the sides of packed rows. None: `inputs_length` and `targets_length`.
    """
    lengths = store.pair_lengths() + (bos is not None)
    in_random_order = packed or limit or per_label
    chosen = choose_pairs(store, limit, per_label, seed) if in_random_order else np.arange(len(lengths))
    if not packed:
        return plan_one_per_row(chosen, inputs_length, targets_length)
    return pack(lengths, chosen, *(sides or (inputs_length, targets_length)), (inputs_length, targets_length))
