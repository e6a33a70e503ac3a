"""Files .arrow: both formats, lists, names of classes, and damage."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc

from t5lite.data.columns import Columns
from t5lite.data.sources import open_source
from t5lite.system.errors import UserError

CLASSES = ["bad", "good"]
FEATURES = {
    "inputs": {"dtype": "string", "_type": "Value"},
    "targets": {"names": CLASSES, "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B"], "_type": "ClassLabel"}, "_type": "List"},
    "old_tags": [{"names": ["O", "B"], "_type": "ClassLabel"}],
}


def write(path, columns, kind="stream", features=None, rows_per_batch=7):
    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with (ipc.new_stream if kind == "stream" else ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, rows_per_batch)
    return path


def pairs(path, **columns):
    return list(open_source(f"files:{path}", Columns(**columns)).pairs())


COLUMNS = {"inputs": [f"text {i} ä" for i in range(40)], "targets": [i % 2 for i in range(40)]}


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_both_formats_are_read_in_several_batches(tmp_path, kind):
    write(tmp_path / "a.arrow", COLUMNS | {"other": [None] * 40}, kind)
    assert pairs(tmp_path / "a.arrow") == [(f"text {i} ä", str(i % 2)) for i in range(40)]
    texts = list(open_source(f"files:{tmp_path}/*.arrow", Columns(text="inputs")).fragments())
    assert [each.text for each in texts] == COLUMNS["inputs"]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_columns_may_come_in_any_order_and_encoding(tmp_path, kind):
    texts = pyarrow.array(["b", "a", "b"]).dictionary_encode()
    write(tmp_path / "a.arrow", {"targets": ["x", "y", "z"], "c": [1, 2, 3], "inputs": texts}, kind)
    assert pairs(tmp_path / "a.arrow") == [("b", "x"), ("a", "y"), ("b", "z")]
    assert pairs(tmp_path / "a.arrow", targets="c") == [("b", "1"), ("a", "2"), ("b", "3")]


def test_classes_have_their_names(tmp_path):
    columns = COLUMNS | {"tags": [["1"]] * 40}
    write(tmp_path / "a.arrow", columns, features=FEATURES)
    assert pairs(tmp_path / "a.arrow")[:3] == [("text 0 ä", "bad"), ("text 1 ä", "good"), ("text 2 ä", "bad")]


@pytest.mark.parametrize("column", ["tags", "old_tags"])
def test_lists_of_classes_have_names_too(tmp_path, column):
    write(tmp_path / "a.arrow", {"words": [["a", "sea"]], column: [[0, 1]]}, features=FEATURES)
    source = open_source(f"files:{tmp_path}/a.arrow", Columns(inputs="words", targets=column))
    sentence = next(source.tagged_sentences())
    assert (sentence.words, sentence.tags) == (["a", "sea"], ["O", "B"])


@pytest.mark.parametrize(
    "features",
    [None, {}, {"targets": None}, {"targets": {"_type": "ClassLabel"}}, {"targets": {"_type": "Value", "names": ["a"]}},
     {"targets": {"_type": "ClassLabel", "names": [1, 2]}}, ["targets"], 3],
)  # fmt: skip
def test_numbers_without_names_stay_numbers(tmp_path, features):
    write(tmp_path / "a.arrow", COLUMNS, features=features)
    assert pairs(tmp_path / "a.arrow")[1] == ("text 1 ä", "1")


def test_a_class_without_a_name_is_refused(tmp_path):
    write(tmp_path / "a.arrow", {"inputs": ["a", "b"], "targets": [0, -1]}, features=FEATURES)
    with pytest.raises(UserError, match=r"a\.arrow, row 2: column 'targets' is -1, but its classes have the numbers"):
        pairs(tmp_path / "a.arrow")


def test_a_missing_column_is_named(tmp_path):
    write(tmp_path / "a.arrow", COLUMNS)
    with pytest.raises(UserError, match=r"a\.arrow has no column 'label', only 'inputs', 'targets'"):
        pairs(tmp_path / "a.arrow", targets="label")


def test_a_stream_that_lacks_its_last_batch_is_refused(tmp_path):
    """Arrow itself reads the shorter stream without a complaint."""
    schema = pyarrow.table(COLUMNS).schema
    writer = ipc.new_stream(str(tmp_path / "a.arrow"), schema)
    writer.write_table(pyarrow.table(COLUMNS), 7)
    size = (tmp_path / "a.arrow").stat().st_size
    writer.close()
    data = (tmp_path / "a.arrow").read_bytes()
    assert size < len(data)
    (tmp_path / "a.arrow").write_bytes(data[: len(data) - 8])
    with pytest.raises(UserError, match=r"a\.arrow is cut short"):
        pairs(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, kind):
    data = write(tmp_path / "a.arrow", COLUMNS, kind).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    faulty = [data[:stop] for stop in range(0, len(data), 97)]
    for _ in range(60):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        faulty.append(bytes(changed))
    for each in faulty:
        (tmp_path / "a.arrow").write_bytes(each)
        try:
            pairs(tmp_path / "a.arrow")
        except UserError as error:
            refused += 1
            assert "a.arrow" in str(error) and "\n" not in str(error)
    assert refused >= len(faulty) - 60, "a file that is cut short is always refused"
