"""More references for the pairs of a store: texts that are right answers too, beside the pair's targets.

    pair 0: targets "a dog"                               store/…              "a dog" is document 1
    pair 1: targets "a cat", more: "the cat", "cats"      store/references/    "the cat", "cats"; owners.npy: 1 1

The store of a source without such pairs has no folder `references`. Training reads only the targets of a pair.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5lite.data.store import StoreWriter, TokenStore, map_array, save_array
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError

FOLDER, OWNERS = "references", "owners.npy"
WRITTEN_TOGETHER = 4096  # texts that are encoded at a time


class ReferencesWriter:
    """Write the references of a store's pairs, in the order of the pairs. store_folder: the folder of the store."""

    def __init__(self, store_folder: Path, tokenizer: TextTokenizer):
        self.num_pairs = 0
        self._folder, self._tokenizer = store_folder / FOLDER, tokenizer
        self._writer: StoreWriter | None = None
        self._texts: list[str] = []
        self._owners: list[int] = []

    def add(self, pair: int, texts: Sequence[str]) -> None:
        """Add the references of a pair, without its targets."""
        self.num_pairs += 1
        self._texts += texts
        self._owners += [pair] * len(texts)
        if len(self._texts) >= WRITTEN_TOGETHER:
            self._write()

    def _write(self) -> None:
        vocabulary = self._tokenizer.vocabulary
        if self._writer is None:
            self._writer = StoreWriter(self._folder, vocabulary.rows, vocabulary.eos)
        documents = [np.append(tokens, vocabulary.eos) for tokens in self._tokenizer.encode_many(self._texts)]
        self._writer.append(np.concatenate(documents), np.cumsum([len(document) for document in documents]))
        self._texts = []

    def close(self) -> dict[str, int]:
        """Write the rest. Return the fields for the card of the store: {} if no pair has more references."""
        if self._texts:
            self._write()
        if self._writer is None:
            return {}
        owners = np.array(self._owners, np.int64)
        save_array(self._folder / OWNERS, owners)
        self._writer.close({"owners_sha256": hashlib.sha256(owners.astype("<i8").tobytes()).hexdigest()})
        return {"pairs_with_references": self.num_pairs}


class References:
    """The references of a store's pairs, to read. Raises UserError if they are damaged.

    fingerprint: equal for equal references of equal pairs; "" if no pair has more references.
    """

    def __init__(self, store: TokenStore):
        self.num_pairs, self.fingerprint = store.card.get("pairs_with_references", 0), ""
        if not self.num_pairs:
            return
        way_out = f"delete {store.folder.parent}, and the next run builds it anew"
        try:
            self._store = TokenStore(store.folder / FOLDER)
            self._owners = map_array(self._store.folder / OWNERS, np.int64)
        except (UserError, ValueError) as error:
            raise UserError(f"the token store {store.folder} is damaged (its references); {way_out}") from error
        digest = hashlib.sha256(self._owners.astype("<i8").tobytes()).hexdigest()
        if digest != self._store.card.get("owners_sha256") or len(self._owners) != self._store.num_documents:
            raise UserError(f"the token store {store.folder} is damaged (the owners of references); {way_out}")
        self.fingerprint = self._store.card["sha256"][:16] + digest[:16]

    def read(self, pair: int) -> list[np.ndarray]:
        """Return the tokens of each reference of a pair, with EOS, without the pair's targets."""
        if not self.num_pairs:
            return []
        first, last = np.searchsorted(self._owners, [pair, pair + 1])
        return [self._store.document(index) for index in range(first, last)]
