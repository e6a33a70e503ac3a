"""Several references for a pair: read from lists, kept beside the pair's store, and read again."""

import json
import random

import numpy as np
import pytest

from t5lite.data import references
from t5lite.data.build import HELDOUT_EVERY, build_pairs
from t5lite.data.columns import Columns
from t5lite.data.references import References
from t5lite.data.sources import open_source
from t5lite.data.store import TokenStore
from t5lite.system.errors import UserError
from tests.data.test_build import TOKENIZER, WORDS


def ignore(_):
    pass


def draw_pairs(count, seed=0):
    """Return pairs (inputs, targets, more references), most of them with several references."""
    rng = random.Random(seed)
    text = lambda: " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
    return [(text(), *(text() for _ in range(rng.choice([1, 1, 2, 3, 5])))) for _ in range(count)]


def references_of(folder):
    store = TokenStore(folder)
    more = References(store)
    read = lambda tokens: TOKENIZER.decode(tokens)
    return [
        (read(store.document(2 * i)), read(store.document(2 * i + 1)), *map(read, more.read(i)))
        for i in range(store.num_documents // 2)
    ]


@pytest.mark.parametrize("together", [1, 7, 4096])
@pytest.mark.parametrize("hold_out", [True, False])
@pytest.mark.parametrize("count", [1, 20, 21, 90])
def test_each_pair_keeps_its_references_in_its_store(count, hold_out, together, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "WRITTEN_TOGETHER", together)
    pairs = draw_pairs(count)
    build_pairs(tmp_path, iter(pairs), TOKENIZER, hold_out, ignore)
    held = [i % HELDOUT_EVERY == HELDOUT_EVERY - 1 and hold_out for i in range(count)]
    for name, wanted in (("train", False), ("heldout", True)):
        expected = [pair for pair, is_held in zip(pairs, held, strict=True) if is_held == wanted]
        assert references_of(tmp_path / name) == expected
        several = sum(len(pair) > 2 for pair in expected)
        assert TokenStore(tmp_path / name).card.get("pairs_with_references", 0) == several
        assert TokenStore(tmp_path / name).card["labels"] is None or all(len(pair) == 2 for pair in pairs)


def test_a_source_without_several_references_has_the_store_that_it_had(tmp_path):
    build_pairs(tmp_path, iter([("a", "b"), ("c", "d")]), TOKENIZER, False, ignore)
    card = TokenStore(tmp_path / "train").card
    assert "pairs_with_references" not in card and card["labels"] == {"b": 1, "d": 1}
    assert (
        not (tmp_path / "train" / "references").exists()
        and References(TokenStore(tmp_path / "train")).fingerprint == ""
    )


def test_other_references_have_another_fingerprint(tmp_path):
    def fingerprint(*pairs):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        build_pairs(folder, iter(pairs), TOKENIZER, False, ignore)
        return References(TokenStore(folder / "train")).fingerprint

    same = fingerprint(("a", "b", "c"), ("d", "e"))
    assert same == fingerprint(("a", "b", "c"), ("d", "e"))
    others = [fingerprint(("a", "b", "x"), ("d", "e")), fingerprint(("a", "b"), ("d", "e", "c")), ""]
    assert len({same, *others}) == 4


@pytest.mark.parametrize("damage", ["folder", "owners", "token", "owner"])
def test_damaged_references_are_refused(damage, tmp_path):
    build_pairs(tmp_path, iter(draw_pairs(40)), TOKENIZER, False, ignore)
    folder = tmp_path / "train" / "references"
    if damage == "folder":
        folder.rename(tmp_path / "elsewhere")
    elif damage == "owners":
        (folder / "owners.npy").unlink()
    else:
        file = folder / ("owners.npy" if damage == "owner" else "tokens-00000.npy")
        content = bytearray(file.read_bytes())
        content[-8] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'train'} is damaged .*delete {tmp_path},"):
        References(TokenStore(tmp_path / "train"))


def pairs_of(path, **columns):
    return list(open_source(f"files:{path}", Columns(**columns)).pairs())


ROWS = [
    {"inputs": "q0", "targets": ["a", "b"]},
    {"inputs": "q1", "targets": "c"},
    {"inputs": "q2", "targets": ["d"]},
    {"inputs": "q3", "targets": ["e", "e", "f"]},
]
PAIRS = [("q0", "a", "b"), ("q1", "c"), ("q2", "d"), ("q3", "e", "f")]


def test_a_list_of_targets_is_read_from_jsonl_and_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert pairs_of(tmp_path / "a.jsonl") == PAIRS
    lists = [row | {"targets": np.atleast_1d(row["targets"]).tolist()} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(lists), tmp_path / "a.parquet")
    assert pairs_of(tmp_path / "a.parquet") == PAIRS


def test_a_template_makes_a_reference_of_each_item(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "why", "unit": "kg", "answers": [1, 2, 1]}) + "\n")
    templates = (("{q}?", "{answers} {unit}"),)
    assert pairs_of(tmp_path / "a.jsonl", pair_templates=templates) == [("why?", "1 kg", "2 kg")]
    with pytest.raises(UserError, match="line 1: column 'answers' is a list"):
        pairs_of(tmp_path / "a.jsonl", pair_templates=(("{answers}", "{q}"),))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inputs": "q", "targets": []}, "'targets' is an empty list"),
        ({"inputs": "q", "targets": ["a", None]}, "'targets' is null"),
        ({"inputs": "q", "targets": ["a", ["b"]]}, "'targets' is a list"),
        ({"inputs": "q", "targets": ["a", 1]}, "'targets' is a number, but a text"),
        ({"inputs": ["q"], "targets": ["a"]}, "'inputs' is a list"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(row, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"inputs": "q", "targets": "a"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        pairs_of(tmp_path / "a.jsonl")
    two = Columns(pair_templates=(("{inputs}", "{targets} {more}"),))
    (tmp_path / "b.jsonl").write_text(json.dumps({"inputs": "q", "targets": ["a"], "more": ["b"]}) + "\n")
    with pytest.raises(UserError, match="the columns 'targets', 'more' are lists"):
        list(open_source(f"files:{tmp_path / 'b.jsonl'}", two).pairs())
