"""Templates: texts made from the columns of a row, in every source, in training, held-out text and questions."""

import json
from collections import Counter

import pytest

from t5lite.config import base_config
from t5lite.data.columns import Columns, fill_template, list_names, read_columns
from t5lite.data.dataset import open_dataset
from t5lite.data.files import FileSource
from t5lite.data.sources import open_source
from t5lite.data.tfds_source import Records, RecordSource
from t5lite.run.overrides import override
from t5lite.run.requests import read_requests
from t5lite.system.errors import UserError
from tests.data.test_dataset import TOKENIZER, texts
from tests.small import config_with

ROWS = [{"text": f"text {i}", "summary": f"sum {i}", "topic": i % 3} for i in range(60)]
SUMMARIZE = (("summarize: {text}", "{summary}"),)


def write(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_template_is_text_with_the_texts_of_columns():
    row = {"a": "one", "my column": "two {b}", "c": "3"}
    assert fill_template("{a} and {my column}{{}} {a}", row.get) == "one and two {b}{} one"
    assert list_names("{a} and {my column}{{}} {a}") == ["a", "my column", "a"]


@pytest.mark.parametrize(
    "template",
    ["{", "a }", "{}", "{a!r}", "{a:>9}", "{a:{b}}"],
    ids=["open", "close", "empty", "form", "pad", "nested"],
)
def test_a_template_that_is_not_well_formed_is_refused(template):
    with pytest.raises(UserError, match="template "):
        list_names(template)


@pytest.mark.parametrize("name", ["a.__class__", "a[0]"])
def test_a_name_is_only_a_name(name, tmp_path):
    """Python's own formatting would look inside the value."""
    assert list_names(f"{{{name}}}") == [name]
    source = FileSource((write(tmp_path / "a.jsonl"),), Columns(pair_templates=((f"{{{name}}}", "{summary}"),)))
    with pytest.raises(UserError, match="has no column"):
        list(source.pairs())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "records"])
def test_every_source_fills_templates(kind, tmp_path):
    columns = Columns(pair_templates=(("topic {topic}: {text}", "{summary}"),), text_template="{topic}|{text}")
    if kind == "records":
        source = RecordSource("tfds:some", {}, lambda: Records(_Rows(ROWS), None, {}), columns)
    else:
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            write(path)
        elif kind == "csv":
            path.write_text("text,summary,topic\n" + "".join(",".join(map(str, row.values())) + "\n" for row in ROWS))
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        source = open_source(f"files:{path}", columns)
    assert list(source.pairs()) == [(f"topic {i % 3}: text {i}", f"sum {i}") for i in range(60)]
    assert [text for text, _ in source.fragments()] == [f"{i % 3}|text {i}" for i in range(60)]


class _Rows(list):
    """Records by their indices, as a TFDS data source gives them."""

    def __getitems__(self, indices):
        return [dict(ROWS[index]) for index in indices]


def test_the_index_chooses_one_of_several_templates_and_held_out_pairs_get_all_of_them(tmp_path):
    rows = [{"text": f"t{i}", "summary": "s"} for i in range(800)]
    source = FileSource(
        (write(tmp_path / "a.jsonl", rows),), Columns(pair_templates=(("A {text}", "{summary}"), ("B {text}", "x")))
    )
    pairs = list(source.pairs())
    assert pairs == list(source.pairs())
    assert {targets for inputs, targets in pairs if inputs[0] == "A"} == {"s"}
    assert {targets for inputs, targets in pairs if inputs[0] == "B"} == {"x"}
    for part in (pairs, pairs[19::20]):
        counts = Counter(inputs[0] for inputs, _ in part)
        assert min(counts.values()) > 0.3 * len(part)


def make_config(tmp_path, *arguments):
    config = config_with(TOKENIZER, tmp_path / "tokenizer")
    config.data.train.source = f"files:{write(tmp_path / 'a.jsonl')}"
    return override(config, [f"--config.data.{each}" for each in arguments])


def pairs_of(span):
    both = texts(span)
    return list(zip(both[::2], both[1::2], strict=True))


def test_held_out_rows_have_the_templates_of_training_unless_they_have_their_own(tmp_path, cache):
    other = write(tmp_path / "other.jsonl", [{"text": "a", "summary": "b", "target": "c"}])
    template = ("train.template.inputs=sum: {text}", "train.columns.targets=summary")
    opened = open_dataset(make_config(tmp_path, *template), "pairs")
    assert pairs_of(opened.heldout["validation"])[0] == ("sum: text 19", "sum 19")
    config = make_config(tmp_path, *template, f"validation.source=files:{other}", f"test.source=files:{other}",
                         "test.template.inputs=test: {text}", "test.columns.targets=target")  # fmt: skip
    heldout = open_dataset(config, "pairs").heldout
    assert pairs_of(heldout["validation"]) == [("sum: a", "b")]
    assert pairs_of(heldout["test"]) == [("test: a", "c")]


def test_members_of_a_mixture_have_templates_of_their_own(tmp_path, cache):
    config = config_with(TOKENIZER, tmp_path / "tokenizer")
    path = write(tmp_path / "a.jsonl")
    flags = ["train.template.targets={summary}"]
    for name, text in (("one", "1: {text}"), ("two", "2: {text}")):
        flags += [f"train.mixture.{name}.source=files:{path}", f"train.mixture.{name}.template.inputs={text}"]
    opened = open_dataset(override(config, [f"--config.data.{flag}" for flag in flags]), "pairs")
    assert pairs_of(opened.train["one"])[0] == ("1: text 0", "{summary}".format(summary="sum 0"))
    assert pairs_of(opened.heldout["validation_two"])[0] == ("2: text 19", "sum 19")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"templates": (("{a}", "{b}"),), "template.inputs": "{a}"}, "set template or templates, not both"),
        ({"templates": ("{a}", "{b}")}, r"'\{a\}' is not a pair \(inputs, targets\)"),
        ({"templates": (("{a}", 3),)}, "is not a pair"),
        ({"template.inputs": "summarize"}, "the template 'summarize' names no column"),
        ({"template.text": "{a.b!r}"}, "only the name of a column"),
    ],
)
def test_templates_that_cannot_work_are_refused(fields, message):
    train = base_config().data.train
    with train.unlocked():
        train.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        read_columns(train, train, "data.train")


def test_a_column_that_is_missing_is_named_with_its_file(tmp_path):
    source = FileSource((write(tmp_path / "a.jsonl"),), Columns(pair_templates=(("{text}", "{answer}"),)))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1 has no column 'answer', only 'text', 'summary', 'topic'"):
        list(source.pairs())


def test_words_with_tags_have_no_template(tmp_path):
    source = FileSource((write(tmp_path / "a.jsonl"),), Columns(pair_templates=SUMMARIZE))
    with pytest.raises(UserError, match="words with tags have no template"):
        list(source.tagged_sentences())


def test_without_templates_fingerprints_are_as_before_and_with_them_they_differ(tmp_path):
    path = write(tmp_path / "a.jsonl")
    plain, template = (
        FileSource((path,), columns).fingerprint() for columns in (Columns(), Columns(text_template="{a}"))
    )
    assert plain["columns"] == {"text": "text", "inputs": "inputs", "targets": "targets"}
    assert template != plain


def test_rows_to_answer_are_filled_in_like_training_rows(tmp_path):
    rows = [{"text": "a", "summary": "b", "id": 1}, {"inputs": "as it stands", "targets": "c"}, {"summary": "b"}]
    path = write(tmp_path / "a.jsonl", rows)
    requests = read_requests(path, True, Columns(pair_templates=SUMMARIZE), scores=True)
    assert [(each.input, each.target, each.fields) for each in requests[:2]] == [
        ("summarize: a", "b", {"id": 1}),
        ("as it stands", "c", {}),
    ]
    assert "has no inputs or text" in requests[2].fault
