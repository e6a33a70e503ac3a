"""Texts with labels and words with tags: from a file to rows, and what is no such file."""

import json
import random
from collections import Counter

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from t5lite.data.build import encode_words
from t5lite.data.dataset import open_dataset
from t5lite.data.labelled import Facts, LabelledTexts, TaggedSentences, label_ids
from t5lite.data.packing import pair_plan
from t5lite.data.sources import Columns
from t5lite.data.tfds_source import RecordSource
from t5lite.data.tokenizers.tokenizer import Tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, UNKNOWN
from tests.data import released
from tests.small import config_with, small_config

pytestmark = pytest.mark.usefixtures("cache")

WORDS = ["".join(random.Random(i).choices("etaoinshrdlu", k=1 + i % 7)) for i in range(300)]
TOKENIZER = train_tokenizer(sample_chunks([" ".join(random.Random(0).choices(WORDS, k=4000))], 10**6), 400)
SENTENCES = [
    (["Zürich", "is", "dear"], ["B-LOC", "O", "O"]),
    (["I", "know", "Ann", "Lee", "."], ["O", "O", "B-PER", "I-PER", "O"]),
    (["x"], ["O"]),
] * 10


@pytest.fixture
def config(tmp_path):
    return config_with(TOKENIZER, tmp_path / "run")


def write(path, sentences):
    path.write_text("".join(json.dumps({"inputs": w, "targets": t}) + "\n" for w, t in sentences))
    return f"files:{path}"


def open_tagged(config):
    return open_dataset(config, "tags")


def rows_of(dataset, split, length):
    span = {**dataset.train, **dataset.heldout}[split]
    order = pair_plan(span.store, length, length, False).order
    source = TaggedSentences(span.store, order, length, 1, Facts(dataset.labels))
    return source.fetch(np.arange(len(source)))


def words_and_tags(row, labels):
    """[(text of a word, its tag)] of one row, cut before each piece that has a tag."""
    tokens, tags = row
    starts = np.flatnonzero(tags >= 0)
    ends = [*starts[1:], np.flatnonzero(tokens == EOS)[0]]
    return [(TOKENIZER.decode(tokens[start:end]), labels[tags[start]]) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("family", [released.neox, released.bert, released.llama], ids=["0", "3", "2"])
def test_tags_keep_clear_of_any_tokenizers_eos(tmp_path, config, family):
    config.tokenizer.path = f"hf:{family(tmp_path / 'released')}"
    config.data.train.source = write(tmp_path / "a.jsonl", SENTENCES)
    dataset = open_tagged(config)
    eos, decode = dataset.tokenizer.vocabulary.eos, dataset.tokenizer.decode
    rows = rows_of(dataset, "train", 24)
    for inputs, ids, tags in zip(rows["inputs"], rows["inputs_segment_ids"], rows["answers"], strict=True):
        real = inputs[ids > 0]
        assert real[-1] == eos and eos not in real[:-1]
        places = np.flatnonzero(tags >= 0)
        said = [
            (decode(part), dataset.labels[tags[at]])
            for part, at in zip(np.split(real, places[1:]), places, strict=True)
        ]
        assert [tag for _, tag in said] in [tags for _, tags in SENTENCES]
        if family is not released.bert:
            assert " ".join(word.strip() for word, _ in said) in [" ".join(words) for words, _ in SENTENCES]


def test_every_word_has_its_tag_at_its_first_piece(tmp_path, config):
    config.data.train.source = write(tmp_path / "train.jsonl", SENTENCES)
    config.data.validation.source = write(tmp_path / "other.jsonl", SENTENCES[::-1])  # its tags come in another order
    dataset = open_tagged(config)
    assert dataset.labels == ("B-LOC", "B-PER", "I-PER", "O")
    for split, sentences in (("train", SENTENCES), ("validation", SENTENCES[::-1])):
        rows = rows_of(dataset, split, 40)
        assert {name: (value.shape, value.dtype) for name, value in rows.items()} == {
            name: ((30, 40), np.int32) for name in ("inputs", "inputs_segment_ids", "answers")
        }
        assert ((rows["inputs"] > 0) == (rows["inputs_segment_ids"] == 1)).all()
        for row, (words, tags) in zip(zip(rows["inputs"], rows["answers"], strict=True), sentences, strict=True):
            assert words_and_tags(row, dataset.labels) == list(zip(words, tags, strict=True))
            assert TOKENIZER.decode(row[0]) == " ".join(words)


def test_a_long_sentence_is_cut_with_its_tags(tmp_path, config):
    config.data.train.source = write(tmp_path / "train.jsonl", SENTENCES)
    dataset = open_tagged(config)
    whole, cut = (rows_of(dataset, "train", length) for length in (40, 6))
    for name in ("inputs", "answers"):
        assert (cut[name][:, :5] == whole[name][:, :5]).all()
    full = (cut["inputs_segment_ids"] == 1).all(axis=1)
    assert full.any() and (cut["inputs"][full, 5] == EOS).all() and (cut["answers"][full, 5] == -1).all()


def test_parquet_and_numbers_for_tags_are_read_too(tmp_path, config):
    columns = {
        "inputs": [words for words, _ in SENTENCES],
        "targets": [[len(t) for t in tags] for _, tags in SENTENCES],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    config.data.train.source = f"files:{tmp_path}/train.parquet"
    dataset = open_tagged(config)
    assert dataset.labels == ("1", "5")
    first = words_and_tags([rows_of(dataset, "train", 40)[name][0] for name in ("inputs", "answers")], dataset.labels)
    assert first == [("Zürich", "5"), ("is", "1"), ("dear", "1")]


def test_a_word_of_which_the_tokenizer_leaves_nothing_is_unknown():
    class Deaf(Tokenizer):
        def encode_many(self, texts, continues=None):
            return [np.zeros(0, np.int32) if text.strip() == "?" else np.array([7, 8]) for text in texts]

    (pieces,) = encode_words(Deaf(TOKENIZER.model), [["a", "?"]])
    assert [piece.tolist() for piece in pieces] == [[7, 8], [UNKNOWN]]


def test_bytes_of_text_are_the_words_alone(tmp_path, config):
    config.data.train.source = write(tmp_path / "train.jsonl", SENTENCES)
    dataset = open_tagged(config)
    spans = [*dataset.train.values(), *dataset.heldout.values()]
    words = sum(len(" ".join(words).encode()) for words, _ in SENTENCES)
    for name in ("bytes_of_text", "bytes_in_tokens"):
        assert sum(span.store.card[name] for span in spans) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"inputs": ["a", "b"], "targets": ["O"]}, "line 2: 2 words but 1 tags"),
        ({"inputs": "a b", "targets": ["O", "O"]}, "line 2: column 'inputs' is a str"),
        ({"inputs": ["a"], "targets": None}, "line 2: column 'targets' is null"),
        ({"inputs": [], "targets": []}, "line 2: column 'inputs' is an empty list"),
        ({"inputs": ["a"], "targets": [["O"]]}, "line 2: column 'targets' is a list"),
        ({"inputs": ["a"]}, "line 2 has no column 'targets'"),
    ],
    ids=str,
)
def test_what_is_no_sentence_is_refused_with_file_and_line(tmp_path, config, line, message):
    write(tmp_path / "train.jsonl", SENTENCES[:1])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    config.data.train.source = f"files:{tmp_path}/train.jsonl"
    with pytest.raises(UserError, match=f"train.jsonl, {message}"):
        open_tagged(config)


def test_a_tag_never_seen_in_training_is_refused_with_file_and_line(tmp_path, config):
    config.data.train.source = write(tmp_path / "train.jsonl", SENTENCES)
    config.data.validation.source = write(tmp_path / "other.jsonl", [*SENTENCES[:4], (["a"], ["B-ORG"])])
    with pytest.raises(UserError, match=r"other.jsonl, line 5: the tag or label 'B-ORG' never occurs in training"):
        open_tagged(config)


def test_tags_by_the_thousand_are_refused(tmp_path, config):
    config.data.train.source = write(tmp_path / "train.jsonl", [(["a"], [f"tag {i}"]) for i in range(1002)])
    with pytest.raises(UserError, match=r"line 1001: this is tag number 1,001"):
        open_tagged(config)


def test_files_without_lists_are_refused(tmp_path, config):
    (tmp_path / "train.csv").write_text("inputs,targets\na,O\n")
    config.data.train.source = f"files:{tmp_path}/train.csv"
    with pytest.raises(UserError, match=r"train.csv has no lists"):
        open_tagged(config)
    with pytest.raises(UserError, match="words with tags are read from files"):
        RecordSource("tfds:some", {}, dict, Columns()).tagged_sentences()


def test_labels_are_numbered_in_the_order_of_the_dataset(tmp_path, config):
    targets = ["sea", "the mountains", "sky"] * 20
    lines = [json.dumps({"inputs": f"text {i}", "targets": target}) + "\n" for i, target in enumerate(targets)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    config.data.train.source = f"files:{tmp_path}/train.jsonl"
    dataset = open_dataset(config, "pairs")
    ids, store = label_ids(dataset.tokenizer, dataset.labels), dataset.train["train"].store
    order = pair_plan(store, 9, 9, False, limit=25, seed=3).order
    source = LabelledTexts(store, order, 9, 1, Facts(ids=ids))
    rows = source.fetch(np.arange(len(source)))
    assert len(source) == 25 and rows["inputs"].shape == (25, 9)
    for row, pair in enumerate(order):
        assert dataset.labels[rows["answers"][row]] == TOKENIZER.decode(store.document(2 * pair + 1))
    unknown = LabelledTexts(store, order, 9, 1, Facts()).fetch(np.arange(3))
    assert (unknown["answers"] == -1).all()


@pytest.mark.parametrize("packed", [False, True])
def test_a_limit_per_label_keeps_as_many_pairs_of_each_label_drawn_by_the_seed(tmp_path, config, packed):
    targets = ["sea"] * 100 + ["the mountains"] * 40 + ["sky"] * 4
    lines = [json.dumps({"inputs": f"text {i}", "targets": target}) + "\n" for i, target in enumerate(targets)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    config.data.train.source = f"files:{tmp_path}/train.jsonl"
    store = open_dataset(config, "pairs").train["train"].store

    def pairs_of(seed, per_label):
        plan = pair_plan(store, 64, 16, packed, seed=seed, per_label=per_label)
        return sorted(int(pair) for row in range(len(plan)) for pair in plan.pairs(row))

    def labels_of(pairs):
        return Counter(TOKENIZER.decode(store.document(2 * pair + 1)) for pair in pairs)

    few, counts = pairs_of(0, 8), labels_of(range(store.num_documents // 2))
    assert labels_of(few) == {label: min(count, 8) for label, count in counts.items()}
    assert few == pairs_of(0, 8) != pairs_of(1, 8)
    assert set(few) <= set(pairs_of(0, 16))  # more labels add pairs and replace none


@pytest.mark.parametrize(
    ("objective", "architecture", "field", "message"),
    [
        ("span_corruption", "encoder_decoder", "limit", r"data\.train\.limit: counts pairs, but span_corruption reads"),
        ("causal_lm", "decoder", "limit_per_label", r"data\.train\.limit_per_label: counts pairs"),
        ("supervised", "encoder_decoder", "limit_per_label", "the targets are no closed set of labels"),
    ],
)
def test_a_limit_without_a_meaning_is_refused(tmp_path, cache, objective, architecture, field, message):
    rows = [{"inputs": f"text {i}", "targets": f"target {i}", "text": "the sea " * 20} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = small_config(f"files:{tmp_path}/rows.jsonl", objective, architecture)
    made.tokenizer.path = str(tmp_path / "tokenizer")
    TOKENIZER.grow(20, ()).save(tmp_path / "tokenizer" / "tokenizer")
    made.data.train[field] = 8
    with pytest.raises(UserError, match=message):
        open_experiment(made)
