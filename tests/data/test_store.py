"""The token store: what was appended is read back, wherever shards begin, and damage is told."""

import itertools
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite.data import store as store_module
from t5lite.data.store import FORMAT, Span, StoreWriter, TokenStore
from t5lite.system.errors import UserError
from tests.small import Spy


def write(folder, documents, rows=1000, blocks=1):
    """A store of `documents` (lists of ids), appended in `blocks` parts of the stream."""
    writer = StoreWriter(folder, rows)
    tokens = np.array([token for document in documents for token in document], np.int32)
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    edges = np.linspace(0, len(tokens), blocks + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        writer.append(tokens[start:stop], ends[(ends > start) & (ends <= stop)] - start)
    writer.close({"extra": "fact"})
    return TokenStore(folder)


@pytest.fixture(params=[5, 7, 10_000])
def shard_tokens(request, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_TOKENS", request.param)
    return request.param


DOCUMENTS = [[5, 1], [1], [9, 8, 7, 6, 5, 4, 3, 1], [3, 3, 1], [4] * 20 + [1], [1]]
STREAM = [token for document in DOCUMENTS for token in document]


@pytest.mark.parametrize("blocks", [1, 3, len(STREAM)])
def test_documents_come_back_as_they_went_in(tmp_path, shard_tokens, blocks):
    store = write(tmp_path, DOCUMENTS, blocks=blocks)
    assert [store.document(i).tolist() for i in range(store.num_documents)] == DOCUMENTS
    assert (store.num_tokens, store.num_documents) == (len(STREAM), len(DOCUMENTS))
    assert len(list(tmp_path.glob("tokens-*.npy"))) == -(-len(STREAM) // shard_tokens)


def test_any_stretch_is_read_across_shards(tmp_path, shard_tokens):
    store = write(tmp_path, DOCUMENTS)
    for start in range(len(STREAM)):
        for stop in range(start + 1, len(STREAM) + 1):
            assert store.read(start, stop).tolist() == STREAM[start:stop]


def test_the_stream_may_end_with_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_TOKENS", 4)
    store = write(tmp_path, [[2, 1], [3, 1], [4, 5, 6, 1]])
    assert store.card["shards"] == [4, 4]
    assert store.read(4, 8).tolist() == [4, 5, 6, 1]


@pytest.mark.parametrize(("rows", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_tokens_take_two_bytes_where_the_ids_fit(tmp_path, rows, dtype):
    highest = rows - 1
    store = write(tmp_path, [[highest, 1]], rows)
    assert store.read(0, 2).dtype == dtype
    assert store.read(0, 2).tolist() == [highest, 1]


def test_an_empty_store_opens(tmp_path):
    store = write(tmp_path, [])
    assert (store.num_tokens, store.num_documents, len(store.ends)) == (0, 0, 0)


def test_the_card_has_the_counts_and_the_facts_given(tmp_path):
    write(tmp_path, DOCUMENTS)
    card = json.loads((tmp_path / "card.json").read_text())
    assert len(card.pop("sha256")) == 64
    assert len(card.pop("card_sha256")) == 64
    assert card == {"format": FORMAT, "tokens": 36, "documents": 6, "shards": [36], "extra": "fact"}


def test_positions_beyond_two_to_the_31_are_kept(tmp_path):
    writer = StoreWriter(tmp_path, 10)
    writer.total = 2**33  # as though so much had been appended before
    writer.append(np.array([3, 1], np.int32), np.array([2], np.int32))
    writer.close({})
    assert np.load(tmp_path / "ends.npy").tolist() == [2**33 + 2]


def _cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "no card": lambda folder: (folder / "card.json").unlink(),
    "half a card": lambda folder: _cut(folder / "card.json", 20),
    "a card of another kind": lambda folder: (folder / "card.json").write_text("[]"),
    "an empty card": lambda folder: (folder / "card.json").write_text("{}"),
    "no ends": lambda folder: (folder / "ends.npy").unlink(),
    "empty ends": lambda folder: _cut(folder / "ends.npy", 0),
    "half of the ends": lambda folder: _cut(folder / "ends.npy", 140),
    "other ends": lambda folder: np.save(folder / "ends.npy", np.array([3, 4])),
    "a lost shard": lambda folder: (folder / "tokens-00001.npy").unlink(),
    "an empty shard": lambda folder: _cut(folder / "tokens-00001.npy", 0),
    "half a shard": lambda folder: _cut(folder / "tokens-00001.npy", 135),
    "a shorter shard": lambda folder: np.save(folder / "tokens-00001.npy", np.zeros(3, np.uint16)),
    "another format": lambda folder: (folder / "card.json").write_text(
        (folder / "card.json").read_text().replace(f'"format": {FORMAT}', '"format": 1')
    ),
    "another count in the card": lambda folder: (folder / "card.json").write_text(
        (folder / "card.json").read_text().replace('"fact"', '"fiction"')
    ),
    "a card nested too deeply": lambda folder: (folder / "card.json").write_text("[" * 10**5),
    "a flipped token": lambda folder: _flip(folder / "tokens-00001.npy"),
    "a shard of another dtype": lambda folder: _retype(folder / "tokens-00001.npy", np.int16),
    "a shard of another width": lambda folder: _retype(folder / "tokens-00001.npy", np.float64),
    "a shard in two dimensions": lambda folder: np.save(folder / "tokens-00001.npy", np.zeros((5, 2), np.uint16)),
    "a zip of arrays": lambda folder: _zip(folder / "tokens-00001.npy"),
    "a pipe": lambda folder: _pipe(folder / "tokens-00001.npy"),
    "an end that stands one before": lambda folder: np.save(folder / "ends.npy", _moved(np.load(folder / "ends.npy"))),
    "ends of another dtype": lambda folder: _retype(folder / "ends.npy", np.float64),
}


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 2
    path.write_bytes(content)


def _retype(path, dtype):
    np.save(path, np.load(path).astype(dtype))


def _zip(path):
    with path.open("wb") as file:
        np.savez(file, np.zeros(10, np.uint16))


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _moved(ends):
    ends[2] -= 1
    return ends


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_told_with_its_folder(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(store_module, "SHARD_TOKENS", 10)
    write(tmp_path, DOCUMENTS)
    DAMAGE[damage](tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}\S* is damaged .*delete {tmp_path.parent}"):
        TokenStore(tmp_path)


@pytest.mark.parametrize("name", ["ends.npy", "tokens-00000.npy", "card.json"])
def test_nothing_in_a_store_is_unpickled(tmp_path, name):
    write(tmp_path / "store", DOCUMENTS)
    with (tmp_path / "store" / name).open("wb") as file:
        if name == "card.json":
            pickle.dump(Spy(tmp_path / "trace"), file)
        else:
            np.save(file, np.array([Spy(tmp_path / "trace")] * 36, object), allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        TokenStore(tmp_path / "store")
    assert not (tmp_path / "trace").exists()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 10**6), st.floats(0, 1))
def test_a_split_span_is_its_head_and_its_tail(start, length, share):
    head, tail = Span(None, start, start + length).split(share)
    assert (head.start, head.stop, tail.stop) == (start, tail.start, start + length)
    assert tail.stop - tail.start == int(length * share)
