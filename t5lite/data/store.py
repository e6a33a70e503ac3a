"""The token store: tokens of documents end to end, each document closed by EOS, in plain memory-mapped .npy files.

    tokens-00000.npy  5 9 1 4 4 8 1 …   uint16 (uint32 if ids need it), up to 32M tokens a shard
    ends.npy          3 7 …             int64, where each document ends, its EOS included
    card.json         counts, bytes of text, tokenizer (and its EOS if not 1), the SHA-256 of the tokens and of the card

A position counts either all tokens of the stream, or all but the EOS tokens. A `Span` is a stretch of the stream.

Supervised pairs have the same format: document 2i is the inputs of pair i, document 2i + 1 its targets.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.system.errors import UserError
from t5lite.system.files import read_json
from t5lite.system.vocabulary import EOS

FORMAT = 3
SHARD_TOKENS = 32 * 2**20
READ_TO_CHECK = 32 * 2**20  # tokens; a larger store is not read whole when it is opened: that takes a second a GB


class StoreWriter:
    """Append token arrays to shards in `folder`. Memory holds one shard at most. rows: all ids are below it."""

    def __init__(self, folder: Path, rows: int, eos: int = EOS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.eos = eos
        self.dtype = np.uint16 if rows <= 2**16 else np.uint32
        self.total = 0
        self.shards: list[int] = []
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._ends: list[np.ndarray] = []
        self._digest = hashlib.sha256()

    def append(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Add `tokens` [n]. ends: positions in `tokens` where documents end (exclusive)."""
        self._ends.append(ends.astype(np.int64) + self.total)
        self.total += len(tokens)
        tokens = tokens.astype(self.dtype)
        self._digest.update(tokens.astype(tokens.dtype.newbyteorder("<")).tobytes())
        while len(tokens):
            room = SHARD_TOKENS - self._pending_tokens
            self._pending.append(tokens[:room])
            self._pending_tokens += len(tokens[:room])
            tokens = tokens[room:]
            if self._pending_tokens == SHARD_TOKENS:
                self._flush()

    def _flush(self) -> None:
        _save(self.folder / f"tokens-{len(self.shards):05d}.npy", np.concatenate(self._pending))
        self.shards.append(self._pending_tokens)
        self._pending, self._pending_tokens = [], 0

    def close(self, card: dict[str, Any]) -> None:
        """Write the pending tokens, the ends, and the card with the further fields `card`."""
        if self._pending_tokens:
            self._flush()
        ends = np.concatenate(self._ends) if self._ends else np.zeros(0, np.int64)
        _save(self.folder / "ends.npy", ends)
        facts = {"format": FORMAT, "tokens": self.total, "documents": len(ends), "shards": self.shards}
        facts |= {"eos": self.eos} if self.eos != EOS else {}
        card = {**facts, "sha256": self._digest.hexdigest(), **card}
        card["card_sha256"] = _digest_of(card)
        (self.folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def _digest_of(card: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields of a card but "card_sha256"."""
    said = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _save(path: Path, array: np.ndarray) -> None:
    # Not np.save: on a full disk it raises an OSError without a cause.
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _mapped(path: Path, *dtypes: type) -> np.ndarray:
    """Memory-map the array [n] in a .npy file. Raises ValueError for a damaged file, and for other `dtypes`."""
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
    """A store opened for reading. Tokens stay on disk until they are read. Raises UserError for a damaged store."""

    def __init__(self, folder: Path):
        self.folder = folder
        way_out = f"to have it built anew, delete {folder.parent}"
        card = read_json(folder / "card.json", way_out)
        if card is None or card.get("format") != FORMAT or card.get("card_sha256") != _digest_of(card):
            raise UserError(f"the token store {folder} is damaged (its card); {way_out}")
        self.card = card
        self.eos = card.get("eos", EOS)
        try:
            self.ends = _mapped(folder / "ends.npy", np.int64)
            names = [f"tokens-{i:05d}.npy" for i in range(len(card["shards"]))]
            self._shards = [_mapped(folder / name, np.uint16, np.uint32) for name in names]
        except ValueError as error:
            raise UserError(f"the token store {folder} is damaged ({error}); {way_out}") from error
        if not self._agrees():
            raise UserError(f"the token store {folder} is damaged (its files do not agree); {way_out}")
        self.starts_of_shards = np.cumsum([0, *card["shards"]])

    def _agrees(self) -> bool:
        """Return whether the arrays match the card. In a store of over READ_TO_CHECK tokens not every token is read."""
        edges = np.concatenate([[0], self.ends])
        if not (
            [len(shard) for shard in self._shards] == self.card["shards"]
            and sum(self.card["shards"]) == edges[-1] == self.card["tokens"]
            and len(self.ends) == self.card["documents"]
            and np.all(np.diff(edges) > 0)
        ):
            return False
        return self.card["tokens"] > READ_TO_CHECK or self._contents_agree()

    def _contents_agree(self) -> bool:
        digest, ends, start = hashlib.sha256(), [], 0
        for shard in self._shards:
            digest.update(shard.astype(shard.dtype.newbyteorder("<"), copy=False))
            ends.append(start + 1 + np.flatnonzero(shard == self.eos))
            start += len(shard)
        found = np.concatenate([np.zeros(0, np.int64), *ends])
        return digest.hexdigest() == self.card["sha256"] and np.array_equal(found, self.ends)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, EOS included."""
        return self.card["tokens"]

    @property
    def num_documents(self) -> int:
        return self.card["documents"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of the stream, EOS tokens counted."""
        first = int(np.searchsorted(self.starts_of_shards, start, side="right")) - 1
        if stop <= self.starts_of_shards[first + 1]:
            base = self.starts_of_shards[first]
            return self._shards[first][start - base : stop - base]
        parts = []
        while start < stop:
            base, end = self.starts_of_shards[first], min(stop, self.starts_of_shards[first + 1])
            parts.append(self._shards[first][start - base : end - base])
            start, first = end, first + 1
        return np.concatenate(parts)

    def pair_lengths(self) -> np.ndarray:
        """Return int64 [n, 2]: tokens of the inputs and targets of each pair, EOS included."""
        return np.diff(np.asarray(self.ends), prepend=0).reshape(-1, 2)

    def document(self, index: int) -> np.ndarray:
        """Return the tokens of document `index`, its EOS included."""
        return self.read(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of a store's stream, EOS tokens counted."""

    store: TokenStore
    start: int
    stop: int

    @classmethod
    def whole(cls, store: TokenStore) -> "Span":
        """Return the span of all tokens of a store."""
        return cls(store, 0, store.num_tokens)

    @property
    def fingerprint(self) -> str:
        """Equal for the same stretch of the same tokens, in whatever folder they are."""
        return f"{self.store.card['sha256'][:16]}:{self.start}-{self.stop}"

    def split(self, share: float) -> tuple["Span", "Span"]:
        """Return the head and the tail of the span. The tail has `share` of the tokens."""
        middle = self.stop - int((self.stop - self.start) * share)
        return dataclasses.replace(self, stop=middle), dataclasses.replace(self, start=middle)
