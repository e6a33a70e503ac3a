"""From a config to opened data: what is held out, which labels there are, and what the cache knows already."""

import json
import multiprocessing
import os
import random

import numpy as np
import pytest

from t5lite.data import dataset as dataset_module
from t5lite.data.dataset import open_dataset, open_heldout, open_tokenizer
from t5lite.data.packing import pair_plan
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.system.errors import UserError
from tests.small import config_with

pytestmark = pytest.mark.usefixtures("cache")

WORDS = ["".join(random.Random(i).choices("etaoinshrdlu", k=1 + i % 7)) for i in range(300)]
TEXT = " ".join(random.Random(0).choices(WORDS, k=4000))
TOKENIZER = train_tokenizer(sample_chunks([TEXT], 10**6), 400)


@pytest.fixture
def config(tmp_path):
    return config_with(TOKENIZER, tmp_path / "run")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


def documents(path, count, name="document"):
    return jsonl(path, [{"text": f"{name} {i}"} for i in range(count)])


def pairs(path, targets):
    return jsonl(path, [{"inputs": f"input {i}", "targets": target} for i, target in enumerate(targets)])


def texts(span):
    assert (span.start, span.stop) == (0, span.store.num_tokens)
    return [TOKENIZER.decode(span.store.document(i)) for i in range(span.store.num_documents)]


# What is held out


def test_a_validation_source_comes_first_and_leaves_the_training_source_whole(tmp_path, config):
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    config.data.validation.source = documents(tmp_path / "other.jsonl", 3, "other")
    opened = open_dataset(config, "text")
    assert texts(opened.train["train"]) == [f"document {i}" for i in range(40)]
    assert list(opened.heldout) == ["validation"]
    assert texts(opened.heldout["validation"]) == [f"other {i}" for i in range(3)]


def test_a_sources_own_validation_split_comes_second(config, monkeypatch):
    class Split:
        def __init__(self, split):
            self.split = split

        def fragments(self):
            return iter([(f"{self.split} {i}", True) for i in range(40)])

        def fingerprint(self):
            return {"split": self.split}

        def num_bytes(self):
            return None

    monkeypatch.setattr(dataset_module, "available_splits", lambda spec: ("train", "validation", "test"))
    monkeypatch.setattr(dataset_module, "open_source", lambda spec, columns, split, quoting: Split(split))
    config.data.train.source = "tfds:anything"
    opened = open_dataset(config, "text")
    assert texts(opened.train["train"]) == [f"train {i}" for i in range(40)]
    assert texts(opened.heldout["validation"]) == [f"validation {i}" for i in range(40)]

    config.data.train.split = "train[:10%]"
    assert texts(open_dataset(config, "text").heldout["validation"])[0] == "validation 0"

    for overlapping in ("train+validation", "train[:10%]+validation"):
        config.data.train.split = overlapping
        assert len(open_dataset(config, "text").heldout["validation"].store.ends) == 2

    config.data.train.split = "validation"  # then that split cannot be held out as well
    opened = open_dataset(config, "text")
    assert texts(opened.train["train"]) == [f"validation {i}" for i in range(40) if i % 20 != 19]
    assert texts(opened.heldout["validation"]) == ["validation 19", "validation 39"]

    config.data.train.split = None
    config.data.validation.source = "tfds:anything"
    for split in (None, "test"):
        config.data.validation.split = split
        assert texts(open_dataset(config, "text").heldout["validation"])[0] == f"{split or 'validation'} 0"


def test_a_split_that_is_asked_for_is_never_replaced_by_another(config, monkeypatch):
    """A dataset with one split: a part of it, train[:10%], is not all of it."""
    asked = []
    monkeypatch.setattr(dataset_module, "available_splits", lambda spec: ("train",))
    monkeypatch.setattr(dataset_module, "open_source", lambda spec, columns, split, quoting: asked.append(split))
    for split in (None, "train", "train[:10%]", "trian"):
        dataset_module._open("tfds:anything", None, split, "validation", "auto")
    assert asked == ["train", "train", "train[:10%]", "trian"]


@pytest.mark.parametrize("count", [20, 21, 45])
def test_every_20th_document_comes_third(tmp_path, config, count):
    config.data.train.source = documents(tmp_path / "train.jsonl", count)
    opened = open_dataset(config, "text")
    assert texts(opened.heldout["validation"]) == [f"document {i}" for i in range(19, count, 20)]
    assert texts(opened.train["train"]) == [f"document {i}" for i in range(count) if i % 20 != 19]


@pytest.mark.parametrize("count", [1, 19])
def test_the_last_twentieth_of_the_tokens_comes_last(tmp_path, config, count):
    for i in range(count):
        (tmp_path / f"{i:02d}.txt").write_text(TEXT[i:])
    config.data.train.source = f"files:{tmp_path}/*.txt"
    opened = open_dataset(config, "text")
    train, heldout = opened.train["train"], opened.heldout["validation"]
    assert train.store.num_documents == count
    assert (train.start, train.stop, heldout.stop) == (0, heldout.start, train.store.num_tokens)
    assert heldout.stop - heldout.start == train.store.num_tokens // 20


def test_too_few_pairs_to_hold_some_out_ask_for_a_validation_source(tmp_path, config):
    config.data.train.source = pairs(tmp_path / "train.jsonl", ["a"] * 19)
    with pytest.raises(UserError, match=r"fewer than 20 pairs.*data\.validation\.source"):
        open_dataset(config, "pairs")


def test_held_out_data_can_be_opened_alone(tmp_path, config):
    config.data.train.source = "files:nowhere/*.txt"
    config.data.validation.source = pairs(tmp_path / "other.jsonl", ["a", "b"])
    opened = open_heldout(config, "pairs", TOKENIZER, ["b", "a"])
    assert texts(opened.heldout["validation"])[::2] == ["input 0", "input 1"]
    assert (opened.train, opened.labels) == ({}, ("b", "a"))
    with pytest.raises(UserError, match="'b' never occurs"):
        open_heldout(config, "pairs", TOKENIZER, ["a"])


# Empty corpora


@pytest.mark.parametrize("content", ["", '{"text": ""}\n{"text": ""}\n', "\n\n"])
def test_a_source_without_text_is_refused(tmp_path, config, content):
    (tmp_path / "train.jsonl").write_text(content)
    config.data.train.source = f"files:{tmp_path}/train.jsonl"
    with pytest.raises(UserError, match=r"train\.jsonl has no text"):
        open_dataset(config, "text")
    config.tokenizer.path = None
    with pytest.raises(UserError, match="has no text"):
        open_dataset(config, "text")


def test_a_validation_source_without_text_is_refused(tmp_path, config):
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    config.data.validation.source = documents(tmp_path / "other.jsonl", 0)
    with pytest.raises(UserError, match=r"data\.validation: .*other\.jsonl has no text"):
        open_dataset(config, "text")


# Labels


def labelled(tmp_path, config, train, validation=None):
    config.data.train.source = pairs(tmp_path / "train.jsonl", train)
    if validation is not None:
        config.data.validation.source = pairs(tmp_path / "other.jsonl", validation)
    return open_dataset(config, "pairs").labels


def test_few_targets_that_come_often_are_labels_in_order(tmp_path, config):
    assert labelled(tmp_path, config, ["yes", "no"] * 20) == ("no", "yes")
    assert labelled(tmp_path, config, ["yes", "no", ""] * 20) == ("", "no", "yes")


@pytest.mark.parametrize(
    ("targets", "closed"),
    [
        ([f"{i % 100}" for i in range(1000)], True),
        ([f"{i % 100}" for i in range(999)], False),  # not ten of each
        ([f"{i % 101}" for i in range(2000)], False),  # over a hundred
        ([f"{i}" for i in range(1500)], False),
    ],
)
def test_targets_are_labels_where_at_most_100_come_ten_times_each(tmp_path, config, targets, closed):
    assert (labelled(tmp_path, config, targets) is not None) == closed


def test_the_config_decides_where_it_says(tmp_path, config):
    config.data.labels = False
    assert labelled(tmp_path, config, ["yes", "no"] * 20, ["perhaps"]) is None
    config.data.labels = True
    assert len(labelled(tmp_path, config, [f"{i}" for i in range(1000)], ["1"])) == 1000
    with pytest.raises(UserError, match=r"config\.data\.labels: .*over 1,000"):
        labelled(tmp_path, config, [f"{i}" for i in range(1001)], ["1"])


def test_labels_that_training_lacks_are_refused_by_name(tmp_path, config):
    with pytest.raises(UserError, match=r"data\.validation: the label 'no ' and 1 more never occurs"):
        labelled(tmp_path, config, ["yes", "no"] * 20, ["yes", "no ", "perhaps"])
    with pytest.raises(UserError, match=r"data\.validation: over 1,000 different targets"):
        labelled(tmp_path, config, ["yes", "no"] * 20, [str(i) for i in range(1001)])


def test_text_has_no_labels(tmp_path, config):
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    assert open_dataset(config, "text").labels is None


def test_labels_of_a_mixture_are_those_of_all_members(tmp_path, config):
    config.data.train.mixture.a = {"source": pairs(tmp_path / "a.jsonl", ["x", "y"] * 20)}
    config.data.train.mixture.b = {"source": pairs(tmp_path / "b.jsonl", ["z"] * 20)}
    assert open_dataset(config, "pairs").labels == ("x", "y", "z")


# Mixtures


def test_a_mixture_has_named_members_with_weights_and_validation_sets(tmp_path, config):
    config.data.train.mixture.a = {"source": documents(tmp_path / "a.jsonl", 40, "a"), "weight": 3}
    config.data.train.mixture.b = {"source": documents(tmp_path / "b.jsonl", 20, "b")}
    opened = open_dataset(config, "text")
    assert opened.weights == {"a": 3.0, "b": 1.0}
    assert texts(opened.train["b"]) == [f"b {i}" for i in range(19)]
    assert {name: texts(span) for name, span in opened.heldout.items()} == {
        "validation_a": ["a 19", "a 39"],
        "validation_b": ["b 19"],
    }


@pytest.mark.parametrize("name", ["train", "books"])
def test_a_mixture_of_one_is_that_source(tmp_path, config, name):
    config.data.train.mixture[name] = {"source": documents(tmp_path / "a.jsonl", 40, "a")}
    opened = open_dataset(config, "text")
    assert (list(opened.train), list(opened.heldout)) == ([name], ["validation"])


def test_a_mixture_with_a_validation_source_has_that_alone(tmp_path, config):
    for name in "ab":
        config.data.train.mixture[name] = {"source": documents(tmp_path / f"{name}.jsonl", 40, name)}
    config.data.validation.source = documents(tmp_path / "other.jsonl", 3, "other")
    opened = open_dataset(config, "text")
    assert list(opened.heldout) == ["validation"]
    assert len(texts(opened.train["a"])) == 40


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"weight": 1.0}, "no source"),
        ({"source": "pydocs", "wieght": 2.0}, "unknown field wieght"),
        ({"source": "pydocs", "weight": 0}, "positive number, is 0"),
        ({"source": "pydocs", "weight": -1.0}, "positive number"),
        ({"source": "pydocs", "weight": float("nan")}, "positive number"),
        ({"source": "pydocs", "weight": float("inf")}, "positive number"),
        ({"source": "pydocs", "weight": "lots"}, "positive number, is 'lots'"),
        ({"source": "pydocs", "weight": None}, "positive number, is None"),
        ("pydocs", "takes columns, labels, source, split, template, templates, weight"),
        (
            {"source": "pydocs", "columns": {"txt": "body"}},
            "columns: must be a group of fields, out of answers, context, inputs, question, targets, text",
        ),
        ({"source": "pydocs", "columns": "body"}, "columns: must be a group of fields"),
    ],
)
def test_a_mistake_in_a_mixture_names_the_member(config, fields, problem):
    config.data.train.mixture.books = fields
    with pytest.raises(UserError, match=rf"config\.data\.train\.mixture\.books.*{problem}"):
        open_dataset(config, "text")


def test_an_empty_member_of_a_mixture_is_named(tmp_path, config):
    config.data.train.mixture.a = {"source": documents(tmp_path / "a.jsonl", 40)}
    config.data.train.mixture.b = {"source": documents(tmp_path / "empty.jsonl", 0)}
    with pytest.raises(UserError, match=r"data\.train\.mixture\.b: .*empty\.jsonl has no text"):
        open_dataset(config, "text")


def test_members_and_held_out_text_may_have_columns_of_their_own(tmp_path, config):
    """What they do not name is the training data's, or what it is called by default."""
    columns = {"a": ("frage", "targets"), "b": ("inputs", "antwort"), "c": ("q", "antwort")}
    sources = {
        name: jsonl(tmp_path / f"{name}.jsonl", [{key: f"{name} {i}" for key in keys} for i in range(40)])
        for name, keys in columns.items()
    }
    config.data.train.columns.targets = "antwort"
    config.data.train.mixture.a = {"source": sources["a"], "columns": {"inputs": "frage", "targets": "targets"}}
    config.data.train.mixture.b = {"source": sources["b"]}
    config.data.validation.source, config.data.validation.columns.inputs = sources["c"], "q"
    opened = open_dataset(config, "pairs")
    assert texts(opened.train["a"])[:2] == ["a 0", "a 0"] and texts(opened.train["b"])[:2] == ["b 0", "b 0"]
    assert texts(opened.heldout["validation"])[:2] == ["c 0", "c 0"]
    assert texts(open_heldout(config, "pairs", TOKENIZER, None).heldout["validation"])[:2] == ["c 0", "c 0"]
    config.data.train.mixture.a.columns.inputs = "nichts"
    with pytest.raises(UserError, match=r"a\.jsonl.*nichts"):
        open_dataset(config, "pairs")


def test_a_tokenizer_is_trained_on_the_columns_of_each_member(tmp_path, config):
    """A letter that it has not seen is bytes to it, two of them."""
    config.tokenizer.path, config.tokenizer.vocab_size, config.tokenizer.sentinels = None, 300, 0
    czech = jsonl(tmp_path / "a.jsonl", [{"body": "žž " * 99 + TEXT}])
    german = jsonl(tmp_path / "b.jsonl", [{"text": "öö " * 99, "x": TEXT}])
    config.data.train.mixture.a = {"source": czech, "columns": {"text": "body"}}
    config.data.train.mixture.b = {"source": german}
    is_known = lambda tokenizer, letter: len(tokenizer.encode(f"{letter}{letter}")) < 4
    first = open_tokenizer(config, "text")
    assert is_known(first, "ž") and is_known(first, "ö")
    config.data.train.mixture.b.columns = {"text": "x"}
    second = open_tokenizer(config, "text")
    assert is_known(second, "ž") and not is_known(second, "ö")


# The tokenizer


def trained(tmp_path, config, **fields):
    config.tokenizer.path = None
    config.data.train.source = jsonl(tmp_path / "train.jsonl", [{"text": TEXT[i : i + 500]} for i in range(100)])
    config.tokenizer.update({"vocab_size": 300, **fields})
    return open_tokenizer(config, "text")


def test_a_tokenizer_is_trained_once_and_found_again(tmp_path, config, monkeypatch):
    first = trained(tmp_path, config, specials=("[MASK]",))
    assert (first.vocabulary.pieces, first.vocabulary.specials) == (300, {"[MASK]": 400})
    _forbid(monkeypatch, "train_tokenizer")
    assert open_tokenizer(config, "text").sha256 == first.sha256


@pytest.mark.parametrize(
    "change", [{"vocab_size": 310}, {"sentinels": 10}, {"specials": ("[CLS]",)}, {"sample_bytes": 30_000}]
)
def test_another_recipe_trains_another_tokenizer(tmp_path, config, change):
    first = trained(tmp_path, config)
    config.tokenizer.update(change)
    assert open_tokenizer(config, "text").sha256 != first.sha256


def test_a_tokenizer_is_trained_on_other_text_if_the_config_names_it(tmp_path, config):
    """So a few conversations are enough, and they do not change the tokenizer."""
    config.tokenizer.path, config.tokenizer.vocab_size = None, 300
    config.tokenizer.source = jsonl(tmp_path / "big.jsonl", [{"text": TEXT}])
    identities = set()
    for name, kind in (("few", "chat"), ("fewer", "chat"), ("text", "text")):
        message = {"role": "assistant", "content": name}
        config.data.train.source = jsonl(tmp_path / f"{name}.jsonl", [{"messages": [message], "text": name}])
        identities.add(open_tokenizer(config, kind).sha256)
    assert len(identities) == 1
    config.tokenizer.source = None
    with pytest.raises(UserError, match="too short"):
        open_tokenizer(config, "chat")


def test_pairs_and_text_of_one_file_have_tokenizers_of_their_own(tmp_path, config):
    config.tokenizer.path = None
    rows = [{"text": TEXT[i : i + 400], "inputs": TEXT[9 * i : 9 * i + 400].upper(), "targets": "x"} for i in range(80)]
    config.data.train.source = jsonl(tmp_path / "train.jsonl", rows)
    config.tokenizer.vocab_size = 300
    assert open_tokenizer(config, "text").sha256 != open_tokenizer(config, "pairs").sha256


def test_a_tokenizer_that_is_handed_over_is_used(tmp_path, config):
    other = train_tokenizer(sample_chunks([TEXT[::-1]], 10**6), 350)
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    assert open_dataset(config, "text").tokenizer.sha256 == TOKENIZER.sha256
    opened = open_dataset(config, "text", other)
    assert opened.tokenizer.sha256 == opened.identity["tokenizer"] == other.sha256


# The cache


def _refuse_to_build(*_):
    raise AssertionError("built again")


def _forbid(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(dataset_module, name, _refuse_to_build)


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_what_is_in_the_cache_is_not_built_again(tmp_path, config, monkeypatch, kind):
    path = tmp_path / "train.jsonl"
    config.data.train.source = pairs(path, ["a", "b"] * 20) if kind == "pairs" else documents(path, 40)
    first = open_dataset(config, kind)
    kinds = {name: each._replace(build=_refuse_to_build) for name, each in dataset_module.KINDS.items()}
    monkeypatch.setattr(dataset_module, "KINDS", kinds)
    again = open_dataset(config, kind)
    assert again.identity == first.identity
    assert texts(again.train["train"]) == texts(first.train["train"])


def test_a_changed_file_is_built_anew_under_another_identity(tmp_path, config):
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    first = open_dataset(config, "text")
    documents(tmp_path / "train.jsonl", 40, "DOCUMENT")  # of the same size
    os.utime(tmp_path / "train.jsonl", ns=(0, 10**9))
    second = open_dataset(config, "text")
    assert texts(second.train["train"])[0] == "DOCUMENT 0"
    assert set(first.identity.items()) ^ set(second.identity.items()) == {
        (name, opened.identity[name]) for opened in (first, second) for name in first.identity if name != "tokenizer"
    }


def test_identity_tells_apart_tokenizers_columns_held_out_shares_and_kinds(tmp_path, config):
    rows = [{"text": f"a {i}", "inputs": "b", "targets": "c", "other": "d"} for i in range(40)]
    config.data.train.source = jsonl(tmp_path / "train.jsonl", rows)

    def identity(kind="text"):
        return frozenset(open_dataset(config, kind).identity.items())

    found = [identity(), identity("pairs")]
    config.data.validation.source = config.data.train.source
    found.append(identity())
    config.data.validation.source = None
    config.data.train.columns.text = "other"
    found.append(identity())
    config.data.train.columns.text = "text"
    train_tokenizer(sample_chunks([TEXT], 10**6), 350).save(tmp_path / "other" / "tokenizer")
    config.tokenizer.path = str(tmp_path / "other")
    found.append(identity())
    assert len(set(found)) == 5


def test_a_damaged_store_in_the_cache_is_told(tmp_path, config, cache):
    config.data.train.source = documents(tmp_path / "train.jsonl", 40)
    open_dataset(config, "text")
    (shard,) = cache.glob("stores/*/train/tokens-00000.npy")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"is damaged.*delete .*stores/\w+, and"):
        open_dataset(config, "text")


def test_a_mistake_in_the_data_leaves_nothing_in_the_cache(tmp_path, config, cache):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    config.data.train.source = f"files:{tmp_path}/train.jsonl"
    with pytest.raises(UserError, match="line 2"):
        open_dataset(config, "text")
    assert list(cache.rglob("*")) == [cache / "stores"]


def _open_at_once(config, barrier, results):
    barrier.wait(timeout=30)
    opened = open_dataset(config, "text")
    results.put((opened.identity, texts_of_any(opened)))


def texts_of_any(opened):
    span = opened.train["train"]
    return [opened.tokenizer.decode(span.store.document(i)) for i in range(span.store.num_documents)]


def test_two_processes_that_build_at_once_both_have_the_whole(tmp_path, config, cache):
    config.tokenizer.path = None
    config.tokenizer.vocab_size = 300
    config.data.train.source = jsonl(tmp_path / "train.jsonl", [{"text": TEXT[i : i + 200]} for i in range(200)])
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_open_at_once, args=(config, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found[0] == found[1]
    assert found[0][1] == [TEXT[i : i + 200] for i in range(200) if i % 20 != 19]
    assert not [path for path in cache.rglob(".*")]


# Plans of pairs


def plan_of(tmp_path, config, **options):
    config.data.train.source = pairs(tmp_path / "train.jsonl", ["yes", "no"] * 50)
    store = open_dataset(config, "pairs").train["train"].store
    return store, pair_plan(store, 64, 16, **options)


def test_pairs_are_packed_or_stand_one_to_a_row_in_order(tmp_path, config):
    store, packed = plan_of(tmp_path, config, packed=True)
    assert sorted(packed.order) == list(range(95))
    assert len(packed) < 60
    _, alone = plan_of(tmp_path, config, packed=False)
    assert alone.order.tolist() == list(range(95)) and len(alone) == 95
    assert isinstance(store, TokenStore)


def test_a_limit_keeps_the_first_so_many_of_a_fixed_order(tmp_path, config):
    kept = {limit: set(plan_of(tmp_path, config, packed=True, limit=limit)[1].order) for limit in (5, 10, 1000)}
    assert kept[5] < kept[10] < kept[1000] == set(range(95))
    assert kept[5] == set(plan_of(tmp_path, config, packed=False, limit=5)[1].order)
    assert kept[5] != set(plan_of(tmp_path, config, packed=True, limit=5, seed=1)[1].order)
    assert kept[5] != set(np.arange(5))
