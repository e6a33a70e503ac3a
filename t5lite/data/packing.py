"""Pack (inputs, targets) pairs before training: decide once, from their lengths, which pairs share a row.

    lengths (inputs, targets)   (3, 2) (2, 2) (6, 1)   into rows of 6 and 4
    plan                        row 0: pairs 0, 1      row 1: pair 2

A packer that worked during training would have state: a batch would not be a function of its step.
"""

import dataclasses

import numpy as np

OPEN_ROWS = 256  # the largest number of rows that are open for more pairs; if one more row opens, the oldest is closed


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Row r holds the pairs order[starts[r] : starts[r + 1]].

    inputs_length, targets_length: the number of tokens that each side of a row can hold.
    """

    order: np.ndarray
    starts: np.ndarray
    inputs_length: int
    targets_length: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pairs(self, row: int) -> np.ndarray:
        """Return the indices of the pairs in `row`."""
        return self.order[self.starts[row] : self.starts[row + 1]]


def plan_one_per_row(pairs: np.ndarray, inputs_length: int, targets_length: int) -> PackingPlan:
    """Return a plan with one pair in each row."""
    return PackingPlan(pairs, np.arange(len(pairs) + 1), inputs_length, targets_length)


def pack(lengths: np.ndarray, pairs: np.ndarray, inputs_length: int, targets_length: int) -> PackingPlan:
    """Pack pairs by first fit: a pair goes to one of the 256 newest rows with enough room, else to a new row.

    Args:
        lengths: [n, 2], tokens of the inputs and targets of every pair, with EOS. A text that is longer than its side
            counts with the length of the side, because it will be cut.
        pairs: indices of the pairs, in the order of packing.
    """
    limits = np.array([inputs_length, targets_length])
    sizes = np.minimum(lengths, limits)
    room = np.zeros((OPEN_ROWS, 2), np.int64)  # an unused slot has no room
    contents: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    rows: list[list[int]] = []
    oldest = 0
    for pair in pairs.tolist():
        size = sizes[pair]
        fits = np.flatnonzero((room >= size).all(axis=1))
        if len(fits):
            slot = fits[0]
        else:
            slot, oldest = oldest, (oldest + 1) % OPEN_ROWS
            contents[slot] = []
            rows.append(contents[slot])
            room[slot] = limits
        contents[slot].append(pair)
        room[slot] -= size
    order = np.array([pair for row in rows for pair in row], np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    return PackingPlan(order, starts, inputs_length, targets_length)
