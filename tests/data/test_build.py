"""Building stores: every document once, in the right store, whatever the blocks; and complete or not at all."""

import itertools
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite.data import build, store
from t5lite.data.build import build_pairs, build_text
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.system.cache import atomic_folder
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS
from tests.data import released

WORDS = ["".join(random.Random(i).choices("etaoinshrdlu", k=1 + i % 7)) for i in range(300)]
TEXT = " ".join(random.Random(0).choices(WORDS, k=4000))
TOKENIZER = train_tokenizer(sample_chunks([TEXT], 10**6), 400)


def ignore(_):
    pass


def whole(texts):
    return [(text, True) for text in texts]


def built(folder, pieces, hold_out):
    build_text(folder, pieces, TOKENIZER, hold_out, ignore)
    return TokenStore(folder / "train"), TokenStore(folder / "heldout")


def texts_of(opened):
    documents = [opened.document(i) for i in range(opened.num_documents)]
    assert all(document[-1] == EOS and EOS not in document[:-1] for document in documents)
    return [TOKENIZER.decode(document) for document in documents]


@pytest.fixture(params=[(1, 7), (150, 64), (10**6, 10**6)], ids=["tiny blocks", "small blocks", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(build, "ENCODE_CHARACTERS", request.param[0])
    monkeypatch.setattr(store, "SHARD_TOKENS", request.param[1])


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 40, 100])
def test_every_20th_document_is_held_out_and_nothing_is_lost(tmp_path, blocks, count):
    texts = [f"{TEXT[i : i + 3 * i % 50]} {i}\\n" for i in range(count)]
    train, heldout = built(tmp_path, whole(texts), hold_out=True)
    assert texts_of(heldout) == texts[19::20]
    assert texts_of(train) == [text for i, text in enumerate(texts) if i % 20 != 19]


def test_without_holding_out_all_documents_train(tmp_path, blocks):
    texts = [f"a {i}" for i in range(50)]
    train, heldout = built(tmp_path, whole(texts), hold_out=False)
    assert (texts_of(train), texts_of(heldout)) == (texts, [])


def test_empty_documents_leave_no_trace(tmp_path, blocks):
    texts = [f"a {i}" for i in range(60)]
    holes = [piece for text in texts for piece in [("", True), ("", False), (text, True), ("", True)]]
    train, heldout = built(tmp_path, [*holes, ("", True)], hold_out=True)
    assert texts_of(heldout) == texts[19::20]
    assert texts_of(train) + texts_of(heldout) == [t for i, t in enumerate(texts) if i % 20 != 19] + texts[19::20]


@pytest.mark.parametrize("limit", [1, 100, 300, 10**6])
def test_a_document_in_fragments_is_the_document_whole(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(build, "ENCODE_CHARACTERS", limit)
    words = TEXT.split(" ")[:400]
    fragments = [words[0], *(f" {word}" for word in words[1:])]
    pieces = [(text, i % 37 == 36) for i, text in enumerate(fragments)] + [(" z", True)]
    documents = [""]
    for text, ends in pieces:
        documents[-1] += text
        documents += [""] if ends else []
    train, _ = built(tmp_path / "cut", pieces, hold_out=False)
    expected, _ = built(tmp_path / "whole", whole(documents[:-1]), hold_out=False)
    assert texts_of(train) == documents[:-1]
    assert train.read(0, train.num_tokens).tolist() == expected.read(0, expected.num_tokens).tolist()
    assert train.card == expected.card


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab ▁\n🙂", max_size=6), st.booleans()), max_size=50), st.integers(1, 400))
def test_no_character_is_lost_or_added_however_a_text_is_cut(tmp_path_factory, pieces, limit):
    documents = [""]
    for text, ends in pieces:
        documents[-1] += text
        documents += [""] if ends else []
    pieces = [*pieces, ("", True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ENCODE_CHARACTERS", limit)
        train, heldout = built(tmp_path_factory.mktemp("build"), pieces, hold_out=True)
    assert Counter(texts_of(train) + texts_of(heldout)) == Counter(filter(None, documents))


def test_a_document_that_begins_with_an_empty_piece_is_a_document_from_its_start(tmp_path, blocks):
    train, _ = built(tmp_path, [("", False), (" a", False), ("b", True), ("", False), (" ", True)], hold_out=False)
    assert texts_of(train) == [" ab", " "]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab ▁\n\0🙂", max_size=6), st.booleans()), max_size=80), st.integers(1, 400))
def test_bytes_of_text_and_of_tokens_are_those_of_the_documents(tmp_path_factory, pieces, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ENCODE_CHARACTERS", limit)
        opened = built(tmp_path_factory.mktemp("build"), [*pieces, ("", True)], hold_out=True)
    for store_of in opened:
        real = sum(len(text.encode()) for text in texts_of(store_of))
        assert (store_of.card["bytes_of_text"], store_of.card["bytes_in_tokens"]) == (real, real)


def test_bytes_of_text_are_those_of_the_text_where_the_tokenizer_loses_some(tmp_path):
    tokenizer = load_tokenizer(f"hf:{released.bert(tmp_path / 'released')}", 0, ())
    texts = ["Some   text \n\n here.", "É, and an unknown 中 sign"] * 20
    build_text(tmp_path, whole(texts), tokenizer, True, ignore)
    cards = [TokenStore(tmp_path / name).card for name in ("train", "heldout")]
    assert sum(card["bytes_of_text"] for card in cards) == sum(len(text.encode()) for text in texts)
    assert all(0 < card["bytes_in_tokens"] < card["bytes_of_text"] for card in cards)


def test_bytes_of_pairs_are_those_of_both_sides(tmp_path, blocks):
    pairs = [(f"é {i}", "" if i % 3 else "▁ x") for i in range(50)]
    build_pairs(tmp_path, pairs, TOKENIZER, True, ignore)
    cards = [TokenStore(tmp_path / name).card for name in ("train", "heldout")]
    for name in ("bytes_of_text", "bytes_in_tokens"):
        assert sum(card[name] for card in cards) == sum(len(text.encode()) for pair in pairs for text in pair)


def test_the_card_tells_tokens_documents_and_tokenizer(tmp_path, blocks):
    train, heldout = built(tmp_path, whole(["a b"] * 40), hold_out=True)
    assert (train.card["documents"], heldout.card["documents"]) == (38, 2)
    assert heldout.card["tokens"] == 2 * (len(TOKENIZER.encode("a b")) + 1)
    assert train.card["tokenizer_sha256"] == TOKENIZER.sha256


@pytest.mark.parametrize("keep", [False, True], ids=["text", "pairs"])
def test_progress_adds_up_to_the_bytes_of_text(tmp_path, blocks, keep):
    seen = []
    if keep:
        build_pairs(tmp_path, [("é b", "x")] * 50, TOKENIZER, True, seen.append)
    else:
        build_text(tmp_path, whole(["é bx"] * 50), TOKENIZER, True, seen.append)
    assert sum(seen) == 250


def test_the_store_is_a_function_of_the_text_not_of_the_blocks(tmp_path, monkeypatch):
    found = set()
    for limit in (1, 500, 10**6):
        monkeypatch.setattr(build, "ENCODE_CHARACTERS", limit)
        built(tmp_path / str(limit), whole([TEXT[i : i + 30] for i in range(100)]), hold_out=True)
        found.add(b"".join(p.read_bytes() for p in sorted((tmp_path / str(limit)).rglob("*.npy"))))
    assert len(found) == 1


# Pairs


def pairs_of(opened):
    texts = texts_of(opened)
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_pairs_stay_together_also_with_empty_sides(tmp_path, blocks):
    sides = ["", "one two", "e\n", "▁"]
    pairs = [(f"{inputs}{i}" if inputs else "", targets) for i, (inputs, targets) in enumerate(
        itertools.islice(itertools.cycle(itertools.product(sides, sides)), 85)
    )]  # fmt: skip
    build_pairs(tmp_path, pairs, TOKENIZER, True, ignore)
    train, heldout = TokenStore(tmp_path / "train"), TokenStore(tmp_path / "heldout")
    assert pairs_of(heldout) == pairs[19::20]
    assert pairs_of(train) == [pair for i, pair in enumerate(pairs) if i % 20 != 19]


def test_labels_are_counted_over_train_and_held_out_alike(tmp_path, blocks):
    pairs = [(f"a {i}", "yes" if i % 3 else "no") for i in range(60)]
    build_pairs(tmp_path, pairs, TOKENIZER, True, ignore)
    for name in ("train", "heldout"):
        assert TokenStore(tmp_path / name).card["labels"] == {"no": 20, "yes": 40}


@pytest.mark.parametrize(("distinct", "closed"), [(1000, True), (1001, False)])
def test_beyond_a_thousand_distinct_targets_labels_are_not_counted(tmp_path, distinct, closed):
    build_pairs(tmp_path, [("a", str(i)) for i in range(distinct)] * 2, TOKENIZER, False, ignore)
    labels = TokenStore(tmp_path / "train").card["labels"]
    assert (labels == {str(i): 2 for i in range(distinct)}) if closed else labels is None


# Complete or not at all


def test_an_exception_in_the_middle_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ENCODE_CHARACTERS", 100)
    monkeypatch.setattr(store, "SHARD_TOKENS", 10)

    def pieces():
        yield from whole(["one two three"] * 20)
        assert list(tmp_path.rglob("tokens-*.npy"))  # something is there to be removed
        raise UserError("line 21 is not JSON")

    with pytest.raises(UserError, match="line 21"), atomic_folder(tmp_path / "final") as temporary:
        build_text(temporary, pieces(), TOKENIZER, True, ignore)
    assert list(tmp_path.iterdir()) == []


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from t5lite.data import build, store
from t5lite.data.build import build_text
from t5lite.system.cache import atomic_folder
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.system.errors import clean_exit

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = Path(sys.argv[1])
with clean_exit(), atomic_folder(folder / "final") as temporary:
    tokenizer = load_tokenizer(sys.argv[2], 100, ())
    build_text(temporary, [("one two three", True)] * int(sys.argv[3]), tokenizer, True, lambda _: None)
"""


@pytest.mark.parametrize(("documents", "code"), [(200, 0), (20_000, 2)])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path, documents, code):
    """The limit on a file's size stands for the full disk: it strikes in the middle of writing in the same way."""
    (tmp_path / "a.model").write_bytes(TOKENIZER.model)
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, tmp_path / "cache", tmp_path / "a.model", str(documents)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    if code == 0:
        assert TokenStore(tmp_path / "cache" / "final" / "train").num_documents == 190
        return
    assert done.stderr.startswith("t5lite: cannot write") and done.stderr.count("\n") == 1, done.stderr
    assert "free some space" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_very_long_document_without_spaces_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ENCODE_CHARACTERS", 10_000)
    text = "".join(random.Random(1).choices("aé中\n", k=100_000))
    fragments = [(text[i : i + 8000], i + 8000 >= len(text)) for i in range(0, len(text), 8000)]
    train, heldout = built(tmp_path, fragments, hold_out=True)
    assert texts_of(train) == [text]
    assert np.asarray(train.ends).tolist() == [train.num_tokens]
    assert heldout.num_documents == 0
