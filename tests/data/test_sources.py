"""Sources: what is read is what stands in the file, and every fault of a file is one clear line."""

import gzip
import json
import os

import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from t5lite.data import files, readers
from t5lite.data.sources import Columns, Fragment, available_splits, open_source
from t5lite.system.errors import UserError


def texts(pattern, **columns):
    return [text for text, _ in open_source(f"files:{pattern}", Columns(**columns)).fragments()]


def pairs(pattern, **columns):
    return list(open_source(f"files:{pattern}", Columns(**columns)).pairs())


def documents(pattern):
    """Whole documents, after checking that fragments are cut only before a lone space."""
    found, current = [], ""
    for text, ends_document in open_source(f"files:{pattern}").fragments():
        if current:
            assert text[0] == " " and not current[-1].isspace() and not text[1].isspace()
        current += text
        if ends_document:
            found.append(current)
            current = ""
    assert current == ""
    return found


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(call, *parts):
    """The one-line UserError of `call`, which must mention `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, message
    assert "\n" not in message
    return message


# Text files


def test_fragments_of_a_txt_file_add_up_to_it_and_are_cut_before_a_lone_space(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 64)
    content = "Straße  über —\r\nnaïve\tcafé 🙂 one two\x00three\r four\n\n five  six " * 40
    write(tmp_path / "a.txt", content)
    write(tmp_path / "b.txt.gz", gzip.compress(content.encode()))
    assert documents(f"{tmp_path}/*") == [content, content]
    assert len(texts(f"{tmp_path}/a.txt")) > 10


def test_a_place_to_cut_that_straddles_two_blocks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 4)
    assert len(texts(write(tmp_path / "a.txt", "abc def"))) == 2  # the space ends the look of the first block
    assert len(texts(write(tmp_path / "b.txt", "abcd efg"))) == 2


def test_text_without_a_lone_space_is_cut_at_the_limit_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 64)
    monkeypatch.setattr(files, "MAX_FRAGMENT_LENGTH", 100)
    content = "é  " * 500
    found = texts(write(tmp_path / "a.txt", content))
    assert "".join(found) == content
    assert max(map(len, found)) <= 100 + 64


def test_an_empty_file_or_a_lone_byte_order_mark_has_no_documents(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.csv"):
        assert texts(write(tmp_path / name, b"")) == []
        assert texts(write(tmp_path / name, b"\xef\xbb\xbf")) == []


def test_a_byte_order_mark_is_dropped_and_one_inside_is_kept(tmp_path):
    mark = "\ufeff"
    assert documents(write(tmp_path / "a.txt", f"{mark}one {mark}two")) == [f"one {mark}two"]
    assert texts(write(tmp_path / "a.jsonl", mark + '{"text": "one"}')) == ["one"]
    assert texts(write(tmp_path / "a.csv", f"{mark}text\none\n")) == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_named_by_their_offset(tmp_path, name):
    start = '{"text": "é"}\n'.encode() * 100_000  # the fault stands beyond the first block
    path = write(tmp_path / name, b"\xef\xbb\xbf" + start + b"\xff")
    complaint(lambda: texts(path), path, f"byte {3 + len(start)}", "UTF-8")
    complaint(lambda: texts(write(path, b"\xef\xbb\xbfab\xff")), path, "byte 5;", "UTF-8")


def test_a_character_cut_off_at_the_end_of_a_file_is_not_utf8(tmp_path):
    complaint(lambda: texts(write(tmp_path / "a.txt", b"ab\xc3")), "byte 2")


# Rows


def test_jsonl_csv_and_parquet_give_the_same_rows(tmp_path):
    rows = [('He said "no",\r\nand\tleft', "1"), ("a\x00b", ""), ("naïve", "x")]
    as_json = "".join(json.dumps({"inputs": a, "targets": b}) + "\n\n" for a, b in rows)
    quoted = [['"' + value.replace('"', '""') + '"' for value in row] for row in [("inputs", "targets"), *rows]]
    write(tmp_path / "a.jsonl", as_json)
    write(tmp_path / "b.jsonl.gz", gzip.compress(as_json.encode()))
    write(tmp_path / "c.csv", "\r\n".join(map(",".join, quoted)))
    table = pyarrow.table({"targets": [b for _, b in rows], "inputs": [a for a, _ in rows]})
    parquet.write_table(table, tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert pairs(path) == rows, path
        assert texts(path, text="inputs") == [a for a, _ in rows], path


def test_numbers_and_booleans_become_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"inputs": 3, "targets": true}\n{"inputs": 0.5, "targets": false}')
    assert pairs(path) == [("3", "True"), ("0.5", "False")]
    long = "7" * 400  # beyond any float
    assert pairs(write(tmp_path / "long.jsonl", f'{{"inputs": {long}, "targets": true}}')) == [(long, "True")]
    parquet.write_table(pyarrow.table({"inputs": [3], "targets": [True]}), tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("3", "True")]


def test_a_row_with_an_empty_text_is_no_document(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": "b"}')) == ["b"]


def test_lone_surrogates_are_replaced_and_pairs_of_them_are_characters(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud800b \uD83D\uDE00"}')
    assert texts(path) == ["a\N{REPLACEMENT CHARACTER}b 😀"]


@pytest.mark.parametrize(
    "line, part",
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested"),
        ('{"text": ' + "1" * 5000 + "}", "not JSON"),
        ('{"body": "b", "title": "t"}', "'body', 'title'"),
        ('{"text": null}', "null"),
        ('{"text": ["a"]}', "a list"),
    ],
)
def test_a_faulty_jsonl_line_is_named(tmp_path, line, part):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    complaint(lambda: texts(path), f"{path}, line 3", part)


def test_a_null_half_of_a_pair_is_named_in_every_format(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"inputs": "a", "targets": null}')
    complaint(lambda: pairs(path), f"{path}, line 1", "'targets'", "null")
    parquet.write_table(pyarrow.table({"inputs": ["a", "b"], "targets": ["x", None]}), tmp_path / "a.parquet")
    complaint(lambda: pairs(tmp_path / "a.parquet"), "a.parquet, row 2", "'targets'", "null")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_a_missing_column_is_named_with_those_present(tmp_path, name):
    if name == "a.parquet":
        parquet.write_table(pyarrow.table({"body": ["a"], "title": ["b"]}), tmp_path / name)
    else:
        write(tmp_path / name, "body,title\na,b\n".replace(",", "\t" if name == "a.tsv" else ","))
    complaint(lambda: texts(tmp_path / name), name, "'text'", "'body', 'title'")


def test_ragged_and_badly_quoted_csv_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", 'text,title\n"a\nb",c\nd\n')
    complaint(lambda: texts(path), f"{path}, line 4", "1 fields", "header has 2")
    complaint(lambda: texts(write(tmp_path / "b.csv", 'text\n"never closed\n')), "b.csv, line 2")


def test_a_damaged_parquet_file_is_named(tmp_path):
    complaint(lambda: texts(write(tmp_path / "a.parquet", b"PAR1 nonsense PAR1")), "a.parquet", "damaged")


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"plain text", lambda b: b[:40] + b"????" + b[44:]])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    packed = gzip.compress(os.urandom(200).hex().encode())
    path = write(tmp_path / "a.txt.gz", damage(packed))
    complaint(lambda: texts(path), path, "damaged gzip")


def test_a_line_too_long_to_hold_is_refused_without_reading_it_all(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_LENGTH", 1 << 20)
    path = write(tmp_path / "bomb.jsonl.gz", gzip.compress(b"{}\n" + b" " * (8 << 20)))
    complaint(lambda: texts(path), path, "line")
    complaint(lambda: [list(readers.read_lines(path))], f"{path}, line 2 is longer")


# Finding files


def test_globs_are_sorted_joined_and_recursive(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "note.jsonl"):
        write(tmp_path / name, '{"text": "note"}' if name == "note.jsonl" else name)
    assert texts(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert texts(f"{tmp_path}/**/*.txt, {tmp_path}/a.txt,{tmp_path}/*.jsonl") == [
        "a.txt",
        "b.txt",
        "deep/er/c.txt",
        "note",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path):
    assert texts(write(tmp_path / "a[1].txt", "x")) == ["x"]


def test_a_pattern_without_a_match_names_the_folder_that_exists(tmp_path):
    complaint(lambda: open_source(f"files:{tmp_path}/absent/*.txt"), f"{tmp_path}/absent/*.txt", f"{tmp_path} exists")
    write(tmp_path / "a.txt", "x")
    complaint(lambda: open_source(f"files:{tmp_path}/*.txt,{tmp_path}/*.csv"), "*.csv")
    complaint(lambda: open_source(f"files:{tmp_path}"), "no file matches")
    complaint(lambda: open_source("files: , "), "files:")


@pytest.mark.parametrize("name", ["a.md", "a", "a.parquet.gz", "a.zip"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    path = write(tmp_path / name, "x")
    complaint(lambda: open_source(f"files:{path}"), path, ".txt", ".parquet")


def test_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    source = open_source(f"files:{path}")
    path.unlink()
    complaint(lambda: list(source.fragments()), path, "cannot read")
    complaint(source.num_bytes, path)
    complaint(source.fingerprint, path)


def test_pairs_of_a_txt_file_are_refused(tmp_path):
    complaint(lambda: pairs(write(tmp_path / "a.txt", "x")), "a.txt", "columns")


@pytest.mark.parametrize("spec", ["", "nothing", "tfds:", "files:", "data/*.txt", "pydocsx", "http://a/b"])
def test_a_spec_that_is_not_understood_is_refused(spec):
    complaint(lambda: open_source(spec), "files:GLOB")


# What the caller plans with


def test_the_fingerprint_follows_contents_and_columns_but_not_the_folder(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.txt", "text")
        os.utime(tmp_path / folder / "a.txt", ns=(5, 5))
    one, two = (open_source(f"files:{tmp_path}/{folder}/*.txt").fingerprint() for folder in ("one", "two"))
    assert one == two == json.loads(json.dumps(one))
    other = open_source(f"files:{tmp_path}/one/*.txt", Columns(text="body")).fingerprint()
    os.utime(tmp_path / "one" / "a.txt", ns=(6, 6))
    changed = open_source(f"files:{tmp_path}/one/*.txt").fingerprint()
    assert one != other and one != changed


def test_num_bytes_is_that_of_the_text_also_when_packed(tmp_path):
    write(tmp_path / "a.txt", "x" * 1000)
    write(tmp_path / "b.txt.gz", gzip.compress(b"x" * 1000))
    assert open_source(f"files:{tmp_path}/*").num_bytes() == 2000


def test_files_have_one_split_which_is_ignored(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    assert available_splits(f"files:{path}") == ("train",)
    assert list(open_source(f"files:{path}", None, "validation").fragments()) == [Fragment("x", True)]


# TFDS


class SourcesTestReviews(tfds.core.GeneratorBasedBuilder):
    """A labelled dataset of our own, so that no test needs the network."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["bad", "good"])
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(1500), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"text": f"naïve {index}", "label": index % 2}


NAME = "sources_test_reviews"


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def test_a_tfds_dataset_is_read_as_text_and_labels_by_name(tfds_folder, capsys):
    columns = Columns(inputs="text", targets="label")
    source = open_source(f"tfds:{NAME}", columns, "train")
    assert source.fingerprint()["tfds"] == f"{NAME}/1.0.0"
    assert not (tfds_folder / "tfds").exists(), "nothing is prepared before the first read"
    assert sorted(source.pairs()) == sorted((f"naïve {i}", ("bad", "good")[i % 2]) for i in range(1500))
    assert len(list(source.fragments())) == 1500 and source.num_bytes() > 1500
    assert available_splits(f"tfds:{NAME}:1.0.0") == ("train", "test")
    assert len(list(open_source(f"tfds:{NAME}:1.0.0", columns, "train[:10%]").fragments())) == 150
    assert capsys.readouterr().out == "", "stdout is for results"


def test_another_process_that_prepares_first_is_no_error(tfds_folder, monkeypatch):
    prepare = SourcesTestReviews.download_and_prepare

    def overtaken(self, **keywords):
        prepare(self, **keywords)
        raise FileExistsError("already exists")

    monkeypatch.setattr(SourcesTestReviews, "download_and_prepare", overtaken)
    assert len(list(open_source(f"tfds:{NAME}", None, "test").fragments())) == 2


def test_faults_of_a_tfds_source_are_named(tfds_folder):
    complaint(lambda: open_source("tfds:sources_test_review"), f"did you mean '{NAME}'")
    complaint(lambda: open_source("tfds:qqqqzzzz"), "qqqqzzzz", "no such dataset")
    complaint(lambda: open_source(f"tfds:{NAME}/config"), "config")
    complaint(lambda: open_source(f"tfds:{NAME}:9.9.9"), "9.9.9")
    complaint(lambda: open_source("tfds:a b"), "tfds:NAME")
    source = open_source(f"tfds:{NAME}", None, "validation")
    complaint(lambda: list(source.fragments()), "'validation'", "test, train")
    complaint(lambda: list(open_source(f"tfds:{NAME}", Columns(text="body")).fragments()), "'body'", "'text'")
