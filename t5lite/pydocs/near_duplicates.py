"""Find and remove duplicates that would leak from a training split into a held-out split.

The shingles of a text are its runs of three words. Two texts are near duplicates if their Jaccard similarity is at
least 0.5: at least half of all their shingles occur in both texts. The comparison is exact: sparse matrix products of
each held-out split with all earlier splits. So, unlike with MinHash, no near duplicate is missed. 30,000 docstrings
take a few seconds.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

SIMILARITY = 0.5
WORDS_PER_SHINGLE = 3
_ROWS_PER_PRODUCT = 256  # limits the memory of one block of the product

_WORD = re.compile(r"\w+")


def normalise_text(text: str) -> str:
    """Return `text` in lower case with single spaces. Exact duplicates have equal results."""
    return " ".join(text.lower().split())


def select_without_leaks(texts: Sequence[str], splits: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Return which of `texts` to keep, bool [n], so that no two splits share a duplicate.

    Of exact duplicates, only the first is kept, in the `order` of splits and then of texts. A text with a near
    duplicate in an earlier split is not kept. Near duplicates inside one split stay.

        select_without_leaks(["a b c d", "A b  c d", "a b c d"], ["train", "train", "test"], ["train", "test"])
        -> [True, False, False]
    """
    rank = np.array([order.index(split) for split in splits], dtype=int)
    keep = np.zeros(len(texts), dtype=bool)
    seen: set[str] = set()
    for index in np.argsort(rank, kind="stable"):
        key = normalise_text(texts[index])
        keep[index] = key not in seen
        seen.add(key)

    shingles_NxS = _make_shingle_matrix(texts)
    for place in range(1, len(order)):
        held_out = np.flatnonzero(keep & (rank == place))
        earlier = np.flatnonzero(keep & (rank < place))
        keep[held_out[_resembles_any(shingles_NxS[held_out], shingles_NxS[earlier])]] = False
    return keep


def _make_shingle_matrix(texts: Sequence[str]) -> sparse.csr_array:
    """Return a 0/1 matrix: a row for each text, a column for each distinct run of three words.

    A shorter text is one run.
    """
    vocabulary: dict[str, int] = {}
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
    runs = []
    for text in texts:
        words = _WORD.findall(text.lower()) or [text]
        words += [""] * (WORDS_PER_SHINGLE - len(words))
        ids = np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in words], dtype=np.uint64)
        # A hash of each run: ids times odd factors, modulo 2**64. A collision has a chance of 1 in 2**40.
        products = ids * factors[:, None]
        count = len(ids) - WORDS_PER_SHINGLE + 1
        runs.append(np.unique(sum(products[place, place : place + count] for place in range(WORDS_PER_SHINGLE))))
    lengths = np.array([len(run) for run in runs], dtype=np.int64)
    _, columns = np.unique(np.concatenate([*runs, np.empty(0, np.uint64)]), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(len(columns), dtype=np.int32)
    return sparse.csr_array((ones, columns, offsets), shape=(len(texts), int(columns.max(initial=0)) + 1))


def _resembles_any(left_LxS: sparse.csr_array, right_RxS: sparse.csr_array) -> np.ndarray:
    """Return bool [L]: whether each row of `left` is a near duplicate of some row of `right`."""
    resembles = np.zeros(left_LxS.shape[0], dtype=bool)
    left_sizes, right_sizes = left_LxS.sum(axis=1), right_RxS.sum(axis=1)
    right_SxR = right_RxS.T.tocsr()
    for start in range(0, left_LxS.shape[0], _ROWS_PER_PRODUCT):
        shared = (left_LxS[start : start + _ROWS_PER_PRODUCT] @ right_SxR).tocoo()
        rows, columns = shared.row + start, shared.col
        union = left_sizes[rows] + right_sizes[columns] - shared.data
        resembles[rows[shared.data >= SIMILARITY * union]] = True
    return resembles
