"""The token store: the tokens of documents, one document after another, in memory-mapped .npy files. EOS ends each.

    tokens-00000.npy  5 9 1 4 4 8 1 …   uint16 (uint32 if ids need it), up to 32M tokens a shard
    ends.npy          3 7 …             int64, where each document ends, after its EOS
    card.json         counts, bytes of text, tokenizer (and its EOS if not 1), the SHA-256 of the tokens and of the card
                      inner_eos: the id that stands for an EOS inside a document, if documents may hold EOS

A position counts all tokens of the stream, or all tokens but EOS. A `Span` is a range of the stream.

Supervised pairs have the same format: document 2i holds the inputs of pair i, document 2i + 1 the targets. More
references of a pair are in a store of their own; see references.py.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.system.errors import UserError
from t5lite.system.files import read_json
from t5lite.system.vocabulary import EOS

FORMAT = 3
SHARD_TOKENS = 32 * 2**20
# When a store of up to this many tokens is opened, all of them are checked. Checking a GB takes a second.
MAX_CHECKED_TOKENS = 32 * 2**20


class StoreWriter:
    """Append token arrays to shards in `folder`. Memory holds at most one shard. rows: all ids are lower."""

    def __init__(self, folder: Path, rows: int, eos: int = EOS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.eos = folder, eos
        self.total, self.shards = 0, []  # tokens so far, in all and in each shard
        self._pending = np.zeros(0, np.uint16 if rows <= 2**16 else np.uint32)
        self._ends = [np.zeros(0, np.int64)]
        self._digest = hashlib.sha256()

    def append(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Add `tokens` [n]. ends: positions in `tokens` where documents end (exclusive)."""
        self._ends.append(ends.astype(np.int64) + self.total)
        self.total += len(tokens)
        self._pending = np.concatenate([self._pending, tokens.astype(self._pending.dtype)])
        while len(self._pending) >= SHARD_TOKENS:
            self._write_shard()

    def _write_shard(self) -> None:
        shard, self._pending = self._pending[:SHARD_TOKENS], self._pending[SHARD_TOKENS:].copy()
        self._digest.update(_to_little_endian(shard))
        save_array(self.folder / f"tokens-{len(self.shards):05d}.npy", shard)
        self.shards.append(len(shard))

    def close(self, card: dict[str, Any]) -> None:
        """Write the pending tokens, the ends and the card. card: more fields of the card."""
        if len(self._pending):
            self._write_shard()
        ends = np.concatenate(self._ends)
        save_array(self.folder / "ends.npy", ends)
        facts = {"format": FORMAT, "tokens": self.total, "documents": len(ends), "shards": self.shards}
        facts |= {"eos": self.eos} if self.eos != EOS else {}
        card = {**facts, "sha256": self._digest.hexdigest(), **card}
        card["card_sha256"] = _compute_digest(card)
        (self.folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def _to_little_endian(tokens: np.ndarray) -> np.ndarray:
    return tokens.astype(tokens.dtype.newbyteorder("<"), copy=False)


def _compute_digest(card: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields of a card but "card_sha256"."""
    fields = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file."""
    # Not np.save: on a full disk it raises an OSError without a cause.
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def map_array(path: Path, *dtypes: type) -> np.ndarray:
    """Memory-map the array [n] in a .npy file. Raises ValueError for a damaged file or another dtype."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not there")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses an array of pickled objects
    except Exception as error:  # Python's parser may raise anything for a damaged header
        raise ValueError(f"{path.name}: {error}") from error
    if array.ndim != 1 or array.dtype not in dtypes:
        raise ValueError(f"{path.name} has shape {array.shape} and dtype {array.dtype}")
    return array


class TokenStore:
    """A token store to read. Tokens stay on disk until they are read. Raises UserError for a damaged store."""

    def __init__(self, folder: Path):
        self.folder = folder
        way_out = f"delete {folder.parent}, and the next run builds it anew"
        card = read_json(folder / "card.json", way_out)
        if card is None or card.get("format") != FORMAT or card.get("card_sha256") != _compute_digest(card):
            raise UserError(f"the token store {folder} is damaged (its card); {way_out}")
        self.card = card
        self.eos, self._inner_eos = card.get("eos", EOS), card.get("inner_eos")
        try:
            self.ends = map_array(folder / "ends.npy", np.int64)
            names = [f"tokens-{i:05d}.npy" for i in range(len(card["shards"]))]
            self._shards = [map_array(folder / name, np.uint16, np.uint32) for name in names]
        except ValueError as error:
            raise UserError(f"the token store {folder} is damaged ({error}); {way_out}") from error
        if not self._matches_card():
            raise UserError(f"the token store {folder} is damaged (its files contradict each other); {way_out}")
        # Where each shard starts in the stream, and where the last shard ends.
        self._starts = [0, *itertools.accumulate(card["shards"])]

    def _matches_card(self) -> bool:
        """Return whether the arrays match the card. If the store is large, not every token is checked."""
        card, edges = self.card, np.concatenate([[0], self.ends])
        if not (
            [len(shard) for shard in self._shards] == card["shards"]
            and sum(card["shards"]) == edges[-1] == card["tokens"]
            and len(self.ends) == card["documents"]
            and np.all(np.diff(edges) > 0)
        ):
            return False
        if card["tokens"] > MAX_CHECKED_TOKENS:
            return True
        tokens = np.concatenate([np.zeros(0, np.uint16), *self._shards])
        ends = np.flatnonzero(tokens == self.eos) + 1
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(_to_little_endian(shard))
        return digest.hexdigest() == card["sha256"] and np.array_equal(ends, self.ends)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, with EOS."""
        return self.card["tokens"]

    @property
    def num_documents(self) -> int:
        return self.card["documents"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of the stream. Positions count EOS."""
        tokens = self._read(start, stop)
        return tokens if self._inner_eos is None else np.where(tokens == self._inner_eos, self.eos, tokens)

    def _read(self, start: int, stop: int) -> np.ndarray:
        first, last = bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop)
        if last <= first + 1:
            return self._shards[first][start - self._starts[first] : stop - self._starts[first]]
        shards = zip(self._starts[first:last], self._shards[first:last], strict=True)
        return np.concatenate([shard[max(start - base, 0) : stop - base] for base, shard in shards])

    def pair_lengths(self) -> np.ndarray:
        """Return int64 [n, 2]: tokens of the inputs and targets of each pair, with EOS."""
        return np.diff(np.asarray(self.ends), prepend=0).reshape(-1, 2)

    def document(self, index: int) -> np.ndarray:
        """Return the tokens of document `index`, with EOS."""
        return self.read(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of a store's stream. Positions count EOS."""

    store: TokenStore
    start: int
    stop: int

    @classmethod
    def cover(cls, store: TokenStore) -> "Span":
        """Return the span of all tokens of a store."""
        return cls(store, 0, store.num_tokens)

    @property
    def fingerprint(self) -> str:
        """A text that is equal for equal ranges of equal tokens, in any folder."""
        return f"{self.store.card['sha256'][:16]}:{self.start}-{self.stop}"

    def split(self, share: float) -> tuple["Span", "Span"]:
        """Return the head and the tail of the span. The tail has `share` of the tokens."""
        middle = self.stop - int((self.stop - self.start) * share)
        return dataclasses.replace(self, stop=middle), dataclasses.replace(self, start=middle)
