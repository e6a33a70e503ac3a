"""Cells of .csv and .tsv: what was written is read back, a row a record, whatever marks stand in it."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite.data.sources import open_source
from t5lite.system.errors import UserError
from tests.data.test_sources import complaint, write

COLUMNS = ("inputs", "targets")
SEPARATORS = {".tsv": "\t", ".csv": ","}


def cells(without):
    """Texts of few characters, so that marks meet in every way; none that the format has no place for."""
    alphabet = [c for c in '"" a,\té\0\ufeff\u2028\x0b\r\n' if c not in without]
    return st.text(st.sampled_from(alphabet), max_size=6)


def is_between_marks(cell):
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def rows(without, quoted=True):
    some = cells(without) if quoted else cells(without).filter(lambda cell: not is_between_marks(cell))
    return st.lists(st.tuples(some, some), min_size=1, max_size=8)


def read(folder, suffix, content, quoting, packed=False):
    path = folder / f"a{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    return list(open_source(f"files:{path}", quoting=quoting).pairs())


def joined(pairs, separator, end):
    return end.join(separator.join(pair) for pair in [COLUMNS, *pairs])


def by_csv_module(pairs, separator, end="\r\n"):
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator=end).writerows([COLUMNS, *pairs])
    return file.getvalue()


ANY_FILE = dict(mark=st.sampled_from(["", "\ufeff"]), packed=st.booleans())


@settings(max_examples=80, deadline=None)
@given(pairs=rows("\t\r\n", quoted=False), end=st.sampled_from(["\n", "\r\n"]), closed=st.booleans(), **ANY_FILE)
def test_tsv_that_was_joined_is_read_back_whatever_marks_it_holds(tmp_path_factory, pairs, end, closed, mark, packed):
    content = mark + joined(pairs, "\t", end) + (end if closed else "")
    assert read(tmp_path_factory.mktemp("a"), ".tsv", content.encode(), "auto", packed) == pairs


@settings(max_examples=80, deadline=None)
@given(pairs=rows("\t\n"), **ANY_FILE)
def test_tsv_of_the_csv_module_is_read_back(tmp_path_factory, pairs, mark, packed):
    content = mark + by_csv_module(pairs, "\t")
    assert read(tmp_path_factory.mktemp("a"), ".tsv", content.encode(), "auto", packed) == pairs


@settings(max_examples=80, deadline=None)
@given(pairs=rows(""), how=st.sampled_from([(".csv", "auto"), (".csv", "csv"), (".tsv", "csv")]), **ANY_FILE)
def test_by_the_rfc_cells_hold_separators_and_line_breaks(tmp_path_factory, pairs, how, mark, packed):
    suffix, quoting = how
    content = mark + by_csv_module(pairs, SEPARATORS[suffix])
    assert read(tmp_path_factory.mktemp("a"), suffix, content.encode(), quoting, packed) == pairs


@settings(max_examples=80, deadline=None)
@given(pairs=rows("\t,\r\n"), suffix=st.sampled_from([".csv", ".tsv"]), **ANY_FILE)
def test_without_quoting_every_mark_is_text(tmp_path_factory, pairs, suffix, mark, packed):
    content = mark + joined(pairs, SEPARATORS[suffix], "\n")
    assert read(tmp_path_factory.mktemp("a"), suffix, content.encode(), "none", packed) == pairs


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"a ""b"" c"', 'a "b" c'),
        ('"a"', "a"),
        ('""', ""),
        ('""""', '"'),
        ('"', '"'),
        ('"""', '"""'),
        ('"a" and "b"', '"a" and "b"'),
        ('"a', '"a'),
        ('a"', 'a"'),
        ('5" disk', '5" disk'),
        ('"a"b"', '"a"b"'),
    ],
)
def test_a_tsv_cell_is_unquoted_where_its_marks_pair_up(tmp_path, cell, text):
    assert read(tmp_path, ".tsv", f"inputs\ttargets\n{cell}\tx\nmore\ty\n".encode(), "auto") == [
        (text, "x"),
        ("more", "y"),
    ]


def test_lone_marks_lose_no_row_of_a_tsv(tmp_path):
    pairs = [(f'"text {i}' if i in (10, 31) else f"text {i}", "pos") for i in range(60)]
    assert read(tmp_path, ".tsv", joined(pairs, "\t", "\n").encode(), "auto") == pairs


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_lone_mark_that_swallows_the_rest_is_named_where_it_stands(tmp_path, name):
    content = ('inputs,targets\nfine,"a\nb"\n"lone,x\n' + "more,x\n" * 100).encode()
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    said = complaint(lambda: list(open_source(f"files:{path}").pairs()), f"{path}, line 4:", "never closes")
    assert "data.train.quoting=none" in said
    later = 'inputs,targets\n"a\nb","lone\n' + "more\n" * 9
    path = write(tmp_path / "b.csv", later)
    complaint(lambda: list(open_source(f"files:{path}").pairs()), f"{path}, line 3:", "never closes")


def test_a_lone_mark_that_another_one_closes_is_named_where_it_stands(tmp_path):
    path = write(tmp_path / "a.csv", 'inputs,targets\nfine,x\n"lone,x\nmore,x\n"lone,x\nmore,x\n')
    complaint(
        lambda: list(open_source(f"files:{path}").pairs()), f"{path}, line 3:", "closes in the middle", "in line 5"
    )


def test_a_row_of_many_lines_that_look_like_rows_is_said_once(tmp_path, capsys):
    swallowed = '"lone,x\nmore,x\nmore,x\nthe end",x\n'
    path = write(tmp_path / "a.csv", "inputs,targets\nfine,x\n" + swallowed * 2)
    assert len(list(open_source(f"files:{path}").pairs())) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}, line 3: one row takes 4 lines" in said
    honest = write(tmp_path / "b.csv", 'inputs,targets\n"one\ntwo, three,\nfour",x\n')
    assert list(open_source(f"files:{honest}").pairs()) == [("one\ntwo, three,\nfour", "x")]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("inputs\ttargets\na\tb\na\tb\tc\n", 3, "3 fields, but the header has 2; correct the line"),
        ("inputs\ttargets\n\na\tb\nc\n", 4, "1 fields, but the header has 2"),
        ('inputs\ttargets\n"a\tb"\tc\n', 2, "data.train.quoting=csv"),
        ('inputs\ttargets\n"a\nb"\tc\n', 2, "data.train.quoting=csv"),
        ("inputs\ttargets\na\rb\tc\n", 2, "convert its line ends"),
        ("inputs\ttargets\ra\tb\r", 1, "convert its line ends"),
    ],
    ids=repr,
)
def test_a_tsv_line_that_is_no_row_is_named(tmp_path, content, line, said):
    path = write(tmp_path / "a.tsv", content)
    complaint(lambda: list(open_source(f"files:{path}").pairs()), f"{path}, line {line} ", said)


def test_an_unknown_way_of_quoting_is_refused_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.tsv", "")
    with pytest.raises(UserError, match=r"config\.data\.train\.quoting: unknown value 'nome'; did you mean 'none'"):
        open_source(f"files:{path}", quoting="nome")


def test_the_fingerprint_follows_the_quoting_of_files_with_cells_alone(tmp_path):
    for name, differs in (("a.tsv", True), ("a.csv.gz", True), ("a.jsonl", False)):
        write(tmp_path / name, b"")
        found = [open_source(f"files:{tmp_path / name}", quoting=way).fingerprint() for way in ("auto", "none")]
        assert (found[0] != found[1]) == differs


# Columns of one type


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (['"1"', "1"], "a number, but a text at"),
        (["1", '"1"'], "a text, but a number at"),
        (["1", "true"], "true or false, but a number at"),
        (["1.5", "1", "true"], "true or false, but a number at"),
    ],
)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_several_types_is_refused_with_both_lines(tmp_path, values, what, column):
    other = {"inputs": "targets", "targets": "inputs"}[column]
    lines = [f'{{"{column}": {value}, "{other}": "x"}}\n' for value in values]
    write(tmp_path / "a.jsonl", lines[0])
    path = write(tmp_path / "b.jsonl", "\n".join(lines[1:]))
    number = 2 * len(lines) - 3
    complaint(
        lambda: list(open_source(f"files:{tmp_path}/*.jsonl").pairs()),
        f"{path}, line {number}: column {column!r} is {what} {tmp_path / 'a.jsonl'}, line 1;",
    )


def test_tags_of_several_types_are_refused_with_both_lines(tmp_path):
    rows = [{"inputs": ["a", "b"], "targets": tags} for tags in ([1, 2], [1, "2"])]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    complaint(
        lambda: list(open_source(f"files:{path}").tagged_sentences()), "line 2: column 'targets' is a text", "line 1"
    )


def test_whole_floats_are_integers_and_others_as_they_stand(tmp_path):
    numbers = ["1.0", "1", "-0.0", "0.5", "1e300", "9007199254740993", "-3.0"]
    path = write(tmp_path / "a.jsonl", "".join(f'{{"inputs": {n}, "targets": "x"}}\n' for n in numbers))
    found = [inputs for inputs, _ in open_source(f"files:{path}").pairs()]
    assert found == ["1", "1", "0", "0.5", "1e+300", "9007199254740993", "-3"]
