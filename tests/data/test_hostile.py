"""Files that nobody meant to write: refused by name or read as they are, and in bounded memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from t5lite.data import files, readers
from t5lite.data.build import MAX_LABEL_LENGTH, build_pairs, build_tagged
from t5lite.data.files import Fragment, TaggedSentence, split_text
from t5lite.data.sources import open_source
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.training import SHORT_CHUNK, sample_chunks, train_tokenizer
from tests.data.test_sources import complaint, documents, texts, write


def tagged(path):
    return list(open_source(f"files:{path}").tagged_sentences())


# Memory

# Of this process alone: its ru_maxrss would begin with that of the one that started it.
PEAK = """
import re
def peak():
    return int(re.search(r"VmHWM:\\s*([0-9]+)", open("/proc/self/status").read())[1]) >> 10
"""
MEASURED = """
import sys
from pathlib import Path
from t5lite.data.sources import open_source
from t5lite.system.errors import UserError
import pyarrow.parquet
base = peak()
characters, said = 0, ""
try:
    for fragment in open_source(f"files:{sys.argv[2]}").fragments():
        assert len(fragment.text) <= int(sys.argv[1])
        characters += len(fragment.text)
except UserError as error:
    said = str(error)
print(characters, peak() - base, said, sep="|")
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read in /proc")


def reading(path, longest=files.MAX_FRAGMENT_LENGTH + readers.BLOCK):
    """(characters, MiB that memory grew by at most, complaint) of reading a file, in a process of its own."""
    command = [sys.executable, "-c", PEAK + MEASURED, str(longest), str(path)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    characters, grown, complaint = said.strip().split("|")
    return int(characters), int(grown), complaint


def bomb(path, start, repeated, mebibytes, end=b""):
    """A .gz file of so many MiB of `repeated`, after `start`."""
    block = repeated * ((1 << 20) // len(repeated))
    with gzip.open(path, "wb", 1) as file:
        file.write(start)
        for _ in range(mebibytes):
            file.write(block)
        file.write(end)
    return path


@needs_proc
def test_a_gzip_bomb_is_refused_by_line_or_read_in_little_memory(tmp_path):
    line = bomb(tmp_path / "a.jsonl.gz", b'{"text": "a"}\n', b" ", 100)
    text = bomb(tmp_path / "b.txt.gz", b"", b"\0", 100)
    _, grown, said = reading(line)
    assert "line 2 is longer than 67,108,864 characters" in said and grown < 200
    characters, grown, _ = reading(text)
    assert characters == 100 << 20 and grown < 50
    characters, grown, _ = reading(bomb(tmp_path / "c.txt.gz", b"", b"some words ", 100))
    assert characters == 100 * 11 * ((1 << 20) // 11) and grown < 50


@needs_proc
@pytest.mark.parametrize("text", [pytest.param("", marks=pytest.mark.slow), " "], ids=["empty", "a space"])
def test_a_million_empty_documents_take_the_memory_of_one(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    write(tmp_path / "b.jsonl", (tmp_path / "a.jsonl").read_text() * 1_000_000)
    characters, grown, said = reading(tmp_path / "b.jsonl")
    assert characters == 1_000_000 * len(text) and grown < 20 and said == ""


@needs_proc
@pytest.mark.slow
def test_a_million_empty_pairs_are_prepared_in_bounded_memory(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.small import small_config\ndef get_config(arg=None):\n"
        "    config = small_config(arg, 'supervised')\n    config.tokenizer.vocab_size = 285\n    return config\n"
    )
    some = [json.dumps({"inputs": f"the old man and the sea {i}", "targets": "a ship"}) for i in range(1000)]
    write(tmp_path / "a.jsonl", "\n".join([*some, *['{"inputs": "", "targets": ""}'] * 1_000_000]))
    program = PEAK + "import sys; from t5lite import prepare; prepare.main(sys.argv[1:]); print(peak())"
    command = [sys.executable, "-c", program, "--config", f"{config}:files:{tmp_path / 'a.jsonl'}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "in 1,901,900 documents" in said and int(said.splitlines()[-1]) < 600


@pytest.mark.parametrize("repeated", [b"a\n", b'\n","', b'","'])
def test_a_csv_row_that_does_not_end_is_refused_where_it_begins(tmp_path, monkeypatch, repeated):
    monkeypatch.setattr(readers, "MAX_LINE_LENGTH", 1 << 16)
    path = bomb(tmp_path / "a.csv.gz", b'text\n"', repeated, 1)
    complaint(lambda: texts(path), "line 2", "longer than")


@needs_proc
def test_a_row_of_parquet_that_expands_takes_the_memory_of_one(tmp_path):
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20, pyarrow.int32()), ["a b" * 2_000_000])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", compression="zstd")
    rows = pyarrow.table({"text": ["c d" * 2_000_000] * 20})
    parquet.write_table(rows, tmp_path / "b.parquet", compression="zstd", use_dictionary=False, write_batch_size=1)
    assert (tmp_path / "a.parquet").stat().st_size + (tmp_path / "b.parquet").stat().st_size < 1 << 20
    for name in ("a.parquet", "b.parquet"):
        characters, grown, _ = reading(tmp_path / name)
        assert characters == 20 * 6_000_000 and grown < 90, name


def test_a_long_row_goes_on_in_fragments_that_are_cut_before_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 64)
    text = "one two  three\nfour five " * 50
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n" + json.dumps({"text": "short"}))
    assert len(texts(path)) > 10
    assert documents(path) == [text, "short"]
    assert list(split_text("")) == [Fragment("", True)]


def test_a_sample_of_tiny_texts_is_bounded_by_their_number():
    assert len(sample_chunks(iter(["a"] * 10_000), 1600)) == 1600 // SHORT_CHUNK
    usual = ["some words of a text"] * 1000
    assert sum(map(len, sample_chunks(usual, 1600))) == 1600


# Text and rows


def test_what_is_in_other_columns_is_of_no_account(tmp_path):
    nested = "[" * 900 + '"\\ud800"' + "]" * 900
    path = write(tmp_path / "a.jsonl", '{"text": "a \\ud800", "other": ' + nested + "}")
    assert texts(path) == ["a \N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("line", ['{"text":' + "[" * depth + "]" * depth + "}" for depth in (1000, 100_000)])
def test_lines_nested_too_deeply_are_refused(tmp_path, line):
    complaint(lambda: texts(write(tmp_path / "a.jsonl", line)), "a.jsonl, line 1")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-Infinity"])
def test_a_number_that_is_none_is_refused_as_null_is(tmp_path, value):
    complaint(lambda: texts(write(tmp_path / "a.jsonl", f'{{"text": {value}}}')), "a.jsonl, line 1", "'text'")
    parquet.write_table(pyarrow.table({"text": [float(value)]}), tmp_path / "a.parquet")
    complaint(lambda: texts(tmp_path / "a.parquet"), "a.parquet, row 1", "'text'")


def test_the_last_of_equal_keys_counts(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", '{"text": "a", "text": "b"}')) == ["b"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_two_columns_of_the_name_asked_for_are_refused(tmp_path, name):
    path = write(tmp_path / name, "text,text\na,b\n".replace(",", "\t" if name == "a.tsv" else ","))
    complaint(lambda: texts(path), path, "2 columns 'text'")


def test_a_quote_that_never_closes_is_named_by_the_line_where_its_row_begins(tmp_path):
    path = write(tmp_path / "a.csv", 'text\nfine\n"never closed\n' + "more\n" * 100)
    complaint(lambda: texts(path), f"{path}, line 3:", "never closes")


def test_line_ends_of_old_are_named(tmp_path):
    complaint(lambda: texts(write(tmp_path / "a.csv", "text\rone\rtwo\r")), "a.csv, line 1", "convert its line ends")


UNKNOWN_TYPES = {
    "timestamp": pyarrow.array([1], pyarrow.timestamp("ns")),
    "duration": pyarrow.array([2**62], pyarrow.duration("s")),
    "date": pyarrow.array([2**30], pyarrow.date32()),
    "decimal": pyarrow.array([1], pyarrow.decimal128(5, 1)),
    "struct": pyarrow.array([{"text": "a"}]),
    "map": pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
    "list of structs": pyarrow.array([[{"text": "a"}]]),
}


@pytest.mark.parametrize("kind", UNKNOWN_TYPES)
def test_a_parquet_column_of_a_type_that_is_no_text_is_refused(tmp_path, kind):
    parquet.write_table(pyarrow.table({"text": UNKNOWN_TYPES[kind]}), tmp_path / "a.parquet")
    complaint(lambda: texts(tmp_path / "a.parquet"), "a.parquet", "'text' is of type", "cast it to string")


def test_two_parquet_columns_of_a_name_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    complaint(lambda: texts(tmp_path / "a.parquet"), "2 columns 'text'")


def test_a_parquet_file_damaged_within_is_called_so(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["some words"] * 5000 + ["more"]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[20:60] = bytes(byte ^ 0x55 for byte in content[20:60])
    complaint(lambda: texts(write(tmp_path / "a.parquet", bytes(content))), "a.parquet", "damaged", "write it again")


def test_sentences_and_tags_have_sizes_of_their_own(tmp_path):
    long = {"inputs": ["a" * 500_000] * 3, "targets": ["A"] * 3}
    complaint(lambda: tagged(write(tmp_path / "a.jsonl", json.dumps(long))), "a.jsonl, line 1", "1,048,576 characters")
    sentence = TaggedSentence(["a"], ["T" * (MAX_LABEL_LENGTH + 1)], "a.jsonl, line 7")
    complaint(lambda: build_tagged(tmp_path, [sentence], TOKENIZER, False, lambda _: None), "a.jsonl, line 7", "a tag")


TOKENIZER = train_tokenizer(["the old man and the sea went on and on. " * 20], 275)


def test_long_targets_are_no_labels_and_are_stored_whole(tmp_path):
    target = "the sea " * 200
    build_pairs(tmp_path, [("a", target), ("", "")] * 20, TOKENIZER, False, lambda _: None)
    store = TokenStore(tmp_path / "train")
    assert store.card["labels"] is None
    assert TOKENIZER.decode(store.document(1)) == target and len(store.document(2)) == 1


# Places


def test_links_that_lead_in_circles_are_entered_once(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name in ("self", "deep/up", "deep/up_again"):
        (folder / name).symlink_to(folder)
    write(folder / "a.txt", "one")
    write(folder / "deep" / "b.txt", "two")
    assert texts(f"{folder}/**/*.txt") == ["one", "two"]
    assert texts(f"{folder}/**") == ["one", "two"]
    assert texts(f"{tmp_path}/**/deep/**/b.txt") == ["two"]


def test_linked_folders_are_read_and_hidden_ones_are_not(tmp_path, monkeypatch):
    for name in ("elsewhere", "here/.hidden"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name / "a.txt", name)
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    assert texts(f"{tmp_path}/here/**/*.txt") == ["elsewhere"]
    monkeypatch.chdir(tmp_path / "here")
    assert texts("**/*.txt") == ["elsewhere"]


NAMES = [
    "a b.txt",
    "a'b\"c.txt",
    "a[1].txt",
    "new\nline.txt",
    "ünï 😀.txt",
    "esc\x1b[31m.txt",
    "back\\slash.txt",
    "-.txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_any_name_are_read_and_named_on_one_line(tmp_path, name):
    assert texts(write(tmp_path / name, "x")) == ["x"]
    message = complaint(lambda: texts(write(tmp_path / name, b"\xff")), "UTF-8")
    assert message.isprintable()


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").symlink_to("c.txt")
    (tmp_path / "d.txt").symlink_to("/dev/zero")
    for name, said in (("a.txt", "a pipe"), ("b.txt", "a folder"), ("c.txt", "no file"), ("d.txt", "device")):
        complaint(lambda name=name: open_source(f"files:{tmp_path}/{name}"), said)
    complaint(lambda: open_source(f"files:{tmp_path}/{'a' * 5000}.txt"), "too long")
    complaint(lambda: open_source(f"files:{tmp_path}/one,two.txt"), "a comma separates patterns")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    source = open_source(f"files:{write(tmp_path / name, b'x')}")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    complaint(lambda: list(source.fragments()), tmp_path / name, "a pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    complaint(lambda: texts(path), path, "Permission denied")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("repeated", [b"a\n", b'\n","'])
def test_a_csv_row_that_does_not_end_takes_bounded_memory(tmp_path, repeated):
    _, grown, said = reading(bomb(tmp_path / "a.csv.gz", b'text\n"', repeated, 300))
    assert "longer than 67,108,864 characters" in said and grown < 2000


@needs_proc
@pytest.mark.slow
def test_ten_gigabytes_of_zeros_out_of_ten_megabytes(tmp_path):
    characters, grown, said = reading(bomb(tmp_path / "a.txt.gz", b"", b"\0", 10_000))
    assert (tmp_path / "a.txt.gz").stat().st_size < 50 << 20
    assert characters == 10_000 << 20 and grown < 100 and said == ""


@needs_proc
@pytest.mark.slow
def test_a_hundred_megabytes_on_one_line_are_prepared_in_bounded_memory(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(26, size=n)) for n in rng.integers(2, 9, 3000)]
    text = " ".join(words[i] for i in rng.integers(3000, size=600_000))
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.small import small_config\ndef get_config(arg=None):\n    config = small_config(arg)\n"
        "    config.tokenizer.vocab_size, config.tokenizer.sample_bytes = 400, 300_000\n    return config\n"
    )
    write(tmp_path / "a.txt", text * 30)
    write(tmp_path / "b.txt", (text * 30).replace(" ", ""))
    write(tmp_path / "c.jsonl", json.dumps({"text": text * 15}))
    program = PEAK + "import sys; from t5lite import prepare; prepare.main(sys.argv[1:]); print(peak())"
    for name in ("a.txt", "b.txt", "c.jsonl"):
        command = [sys.executable, "-c", program, "--config", f"{config}:files:{tmp_path / name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(said.splitlines()[-1]) < 1200, name  # MiB, of which 200 are Python's and its libraries'


FLIPS = """
import sys
from pathlib import Path
from pathlib import Path
from t5lite.data.readers import READERS
from t5lite.system.errors import UserError
path, content = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
for place in range(len(content) // 2, len(content)):
    for bit in (1, 4, 64, 255):
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            list(READERS[".parquet"](path, ["text", "tags"]))
        except UserError:
            pass
"""


def test_no_flipped_bit_of_a_parquet_footer_ends_the_process(tmp_path):
    """Where pyarrow throws outside its own guards, the whole process is gone, and with it every message."""
    tags = pyarrow.array([["x"], ["y", "z"], [], ["q"]])
    table = pyarrow.table({"text": pyarrow.array(["abc", "d", None, "e"]), "tags": tags, "n": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet")
    command = [sys.executable, "-c", FLIPS, str(tmp_path / "a.parquet")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-1000:]
