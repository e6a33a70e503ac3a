"""Nothing is cut in silence: what rows have no place for is counted, said, reported, and counts as missed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5lite import evaluate, preview
from t5lite.data.build import build_pairs, build_tagged
from t5lite.data.files import TaggedSentence
from t5lite.data.labelled import Facts, LabelledTexts, TaggedSentences, label_ids
from t5lite.data.packing import pair_plan
from t5lite.data.rows import PackedPairs
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.tokenizer import Tokenizer
from t5lite.reporting.report import write_report
from t5lite.run.evaluation import Evaluator, load_evaluator
from t5lite.run.experiment import open_experiment
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.sharding import make_mesh
from tests.data import released
from tests.small import WORDS, small_config
from tests.training.test_bytes import OWN

TAGS = ("O", "B-x", "I-x")
lines_of_words = st.lists(st.sampled_from(WORDS), max_size=12)


def write(path, rows):
    Tokenizer(OWN.model, 20, ("[CLS]", "[SEP]")).save(path.parent / "tokenizer")
    path.write_text("".join(json.dumps({"inputs": a, "targets": b}) + "\n" for a, b in rows))
    return f"files:{path}"


def config_of(source, objective="supervised", architecture="encoder_decoder", **fields):
    config = small_config(source, objective, architecture)
    config.data.validation.source = source
    config.tokenizer.path = str(Path(source.removeprefix("files:")).parent)
    config.data.labels = None if objective == "tagging" else fields.pop("labels", False)
    config.objective.pack = False
    config.budget.steps = 1
    for name, value in fields.items():
        config.objective[name] = value
    return config


# Counts


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(lines_of_words, lines_of_words), min_size=1, max_size=8),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),
    st.sampled_from([None, 7]),
    st.booleans(),
    st.sampled_from([None, 3]),
)
def test_pairs_lose_as_many_tokens_as_are_counted(tmp_path_factory, pairs, lengths, bos, packed, limit):
    folder = tmp_path_factory.mktemp("pairs")
    texts = [tuple(" ".join(side) for side in pair) for pair in pairs]
    build_pairs(folder, texts, OWN, False, lambda _: None)
    store = TokenStore(folder / "train")
    plan = pair_plan(store, *lengths, packed, limit, bos=bos)
    source = PackedPairs(store, plan, bos)
    rows, cut = source.fetch(np.arange(len(source))), source.count_cut()
    chosen = [texts[pair] for pair in plan.order]
    whole = [[len(OWN.encode(text)) + 1 + (bos is not None) for text in pair] for pair in chosen]
    held = sum(int((rows[f"{side}_segment_ids"] > 0).sum()) for side in ("inputs", "targets"))
    longer = np.array(whole) > lengths
    assert cut["rows"] == len(chosen) == min(len(texts), limit or len(texts))
    assert [cut["inputs"], cut["targets"]] == longer.sum(axis=0).tolist()
    assert cut["tokens"] == sum(map(sum, whole)) - held
    assert [cut["longest_inputs"], cut["longest_targets"]] == np.max(whole, axis=0).tolist()
    assert cut["longest"] == np.max(np.where(longer, whole, 0))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=6), st.integers(2, 9))
def test_labelled_and_tagged_texts_lose_as_many_tokens_as_are_counted(tmp_path_factory, sentences, length):
    folder = tmp_path_factory.mktemp("labelled")
    build_pairs(folder / "labels", [(" ".join(words), "a label") for words in sentences], OWN, False, lambda _: None)
    tagged = [TaggedSentence(words, [TAGS[len(word) % 3] for word in words], "") for words in sentences]
    build_tagged(folder / "tags", tagged, OWN, False, lambda _: None)
    order = np.arange(len(sentences))
    for source in (
        LabelledTexts(TokenStore(folder / "labels/train"), order, length, 1, Facts(ids=label_ids(OWN, ["a label"]))),
        TaggedSentences(TokenStore(folder / "tags/train"), order, length, 1, Facts(TAGS, for_evaluation=True)),
    ):
        rows, cut = source.fetch(order), source.count_cut()
        whole = np.array([len(source.store.document(2 * i)) for i in order])
        assert cut["tokens"] == whole.sum() - (rows["inputs_segment_ids"] > 0).sum()
        assert (cut["inputs"], cut["targets"]) == (int((whole > length).sum()), 0)
        assert cut["longest_inputs"] == whole.max() + 1  # with [CLS], as inputs_length counts
    for row, (words, (last, after)) in enumerate(zip(sentences, source.find_cut_tags(order), strict=True)):
        left = [tag for tag in rows["answers"][row] if tag >= 0]
        assert [*left, *after] == [len(word) % 3 for word in words]
        assert last == (left[-1] if left else -1)
        assert rows["next_answers"][row] == (after[0] if len(after) else -1)


# What a run says


PREFIX = "the old man went said the white whale the cold sea"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, the config, what it said, its result) of pairs whose targets differ where they are cut."""
    folder = tmp_path_factory.mktemp("cut")
    source = write(folder / "a.jsonl", [(f"say {word} " * 9, f"{PREFIX} {word}") for word in WORDS] * 2)
    config = config_of(source, inputs_length=16, targets_length=8)
    config.eval.rows, config.eval.generate_rows = 20, 4
    config.budget.steps, config.schedule.rate = 60, 1e-2  # until it says what its cut targets hold
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("t5lite.system.progress.print", lambda line, **_: said.append(line), raising=False)
        result = train(config, folder / "run")
    return folder / "run", config, said, result


def test_each_split_is_said_once_with_what_to_raise(run):
    _, _, said, _ = run
    for split in ("train", "validation"):
        (line,) = [line for line in said if f" {split}: " in line]
        assert "26 of 26 inputs are longer than inputs_length=16" in line
        assert "26 of 26 targets are longer than targets_length=8" in line
        assert "raise config.objective.inputs_length and config.objective.targets_length" in line
    assert [line for line in said if line.startswith("validation: ")] == [
        "validation: metrics are of 20 of 26 rows, those of generated answers of 4 (eval.rows, eval.generate_rows)"
    ]


def test_the_result_says_what_was_read_cut_and_evaluated(run):
    workdir, _, _, result = run
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["rows"] == {"data.train": 26, "data.validation": 26}
    assert set(result["cut"]) == {"train", "validation"}
    cut = result["cut"]["validation"]
    assert (cut["rows"], cut["inputs"], cut["targets"]) == (26, 26, 26)
    assert cut["longest"] == max(cut["longest_inputs"], cut["longest_targets"]) > 16
    assert result["evaluated"] == {"validation": {"used": 20, "of": 26, "generated": 4}}


def test_answers_are_compared_with_whole_targets(run):
    workdir, _, _, result = run
    evaluator, params, _ = load_evaluator(workdir)
    shown = list(evaluator.examples(params, "validation", 26))
    assert [each.target for each in shown] == [f"{PREFIX} {word}" for word in WORDS] * 2
    assert all(PREFIX.startswith(each.output) and each.output for each in shown)  # all that training could teach
    assert result["metrics"]["validation"]["exact_match"] == 0


def test_target_tokens_that_are_cut_count_as_missed(run, monkeypatch):
    workdir, _, _, result = run
    evaluator, params, _ = load_evaluator(workdir)
    monkeypatch.setattr(PackedPairs, "count_lost_target_tokens", lambda self, indices: 0)
    of_the_rest = evaluator.evaluate_in_training(params)["validation"]["token_accuracy"]
    cut = result["cut"]["validation"]
    whole = (
        sum(
            len(OWN_tokens)
            for OWN_tokens in evaluator.experiment.dataset.tokenizer.encode_many(
                [f"{PREFIX} {WORDS[i % 13]}" for i in np.linspace(0, 25, 20).round().astype(int)]
            )
        )
        + 20
    )
    assert cut["targets"] == 26
    assert result["metrics"]["validation"]["token_accuracy"] == pytest.approx(of_the_rest * 20 * 8 / whole)


def test_preview_counts_all_rows_whatever_it_shows(run, capsys, tmp_path):
    workdir, _, _, result = run
    preview.main(["--config", str(workdir / "config.json"), "--n", "2", "--summary"])
    said = capsys.readouterr().out
    assert "26 of 26 targets are longer than targets_length=8" in said.replace("\n", " ")
    assert said.count(f"{result['cut']['train']['tokens']:,}") == 4  # two splits, in the table and in a sentence


def test_evaluate_says_rows_of_rows(run, capsys):
    workdir, _, _, _ = run
    evaluate.main(["--checkpoint", str(workdir)])
    said = capsys.readouterr()
    assert "20 of 26" in said.out and "WARNING: validation: 26 of 26 inputs" in said.err
    evaluate.main(["--checkpoint", str(workdir), "--json"])
    assert json.loads(capsys.readouterr().out)["evaluated"]["validation"] == {"used": 20, "of": 26, "generated": 4}


def test_the_report_notes_what_was_cut_and_the_share(run, tmp_path):
    workdir, _, _, _ = run
    write_report([workdir], tmp_path / "report", "a title")
    notes = " ".join(json.loads((tmp_path / "report/report.json").read_text())["notes"])
    assert "validation: 26 of 26 inputs are longer than inputs_length=16" in notes
    assert "validation: metrics are of 20 of 26 rows" in notes


# Entities


def test_entities_beyond_the_inputs_count_as_missed(tmp_path):
    """Whatever the model says: all true entities count, those that were cut off and those that were cut in two."""
    words = ["the", "old", "man"] * 10
    tags = ["B-x", *["O"] * 12, "B-x", "I-x", *["O"] * 14, "B-x"]
    source = write(tmp_path / "a.jsonl", [(words, tags)] * 12)
    for length in (8, 200):
        config = config_of(source, "tagging", "encoder", inputs_length=length)
        experiment = open_experiment(config)
        evaluator = Evaluator(experiment, make_mesh(**config.mesh))
        source_of = experiment.heldout_sources(experiment.evaluated)["validation"]
        missed = evaluator._count_missed(source_of, len(source_of))
        assert missed["tagger/entities"][0] == (24 if length == 8 else 0)
        assert missed["tagger/missed"].sum() == 12 * sum(
            len(after) for _, after in source_of.find_cut_tags(np.arange(1))
        )


# Labels


LABELS = ["the answer is no", "the answer is yes"]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_labels_that_are_alike_where_they_are_cut_are_refused_by_name(tmp_path, architecture):
    source = write(tmp_path / "a.jsonl", [(f"text {i}", LABELS[i % 2]) for i in range(40)])
    config = config_of(source, architecture=architecture, labels=None, targets_length=4)
    with pytest.raises(
        UserError, match="'the answer is no' and 'the answer is yes' are equal after the cut to 4"
    ) as caught:
        open_experiment(config)
    needed = int(str(caught.value).split("raise targets_length to at least ")[1].split(",")[0])
    config.objective.targets_length = needed - 1
    with pytest.raises(UserError, match="equal after the cut"):
        open_experiment(config)
    config.objective.targets_length = needed
    assert open_experiment(config).dataset.labels == tuple(LABELS)
    config.objective.targets_length, config.data.labels = 4, False
    assert open_experiment(config).dataset.labels is None


def test_a_label_that_another_begins_with_needs_a_token_more(tmp_path):
    source = write(tmp_path / "a.jsonl", [(f"text {i}", ["the sea", "the sea ship"][i % 2]) for i in range(40)])
    config = config_of(source, labels=None, targets_length=40)
    encode = open_experiment(config).dataset.tokenizer.encode
    config.objective.targets_length = len(encode("the sea")) + 1
    with pytest.raises(UserError, match=f"raise targets_length to at least {len(encode('the sea')) + 2},"):
        open_experiment(config)


def test_evaluate_refuses_them_too(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    facts = json.loads((tmp_path / "run/provenance.json").read_text())
    (tmp_path / "run/provenance.json").write_text(json.dumps({**facts, "labels": LABELS}))
    source = write(tmp_path / "a.jsonl", [(f"text {i}", LABELS[i % 2]) for i in range(40)])
    config = config_of(source, labels=None, targets_length=4)
    with pytest.raises(UserError, match="equal after the cut to 4"):
        load_evaluator(tmp_path / "run", config)


def test_labels_that_are_the_same_tokens_are_refused_everywhere(tmp_path):
    released.bert(tmp_path / "released")  # to which case is nothing
    source = write(tmp_path / "a.jsonl", [(f"text {i}", ["Yes", "yes"][i % 2]) for i in range(40)])
    for architecture in ("encoder_decoder", "decoder", "encoder"):
        config = config_of(source, architecture=architecture, labels=None, targets_length=40)
        config.tokenizer.path = f"hf:{tmp_path / 'released'}"
        with pytest.raises(UserError, match="the labels 'Yes' and 'yes' have equal tokens in this tokenizer"):
            open_experiment(config)
