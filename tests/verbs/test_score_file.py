"""Predictions in files: written by evaluate, and scored from any system."""

import gzip
import json

import pytest

from t5lite import evaluate
from t5lite.train import train
from tests.small import small_config, write_pairs, write_texts


def run(capsys, *arguments):
    evaluate.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments):
    """Return the line with which evaluate refuses `arguments`."""
    with pytest.raises(SystemExit) as stop:
        evaluate.main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summaries")
    config = small_config(write_pairs(folder / "pairs.jsonl"), "supervised")
    config.data.labels = False
    train(config, folder / "run")
    return folder / "run"


def test_the_metrics_of_generated_answers_are_those_of_their_file(summaries, tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    found = run(capsys, "--workdir", str(summaries), "--predictions", str(file))
    rows = read(file)
    assert {row["split"] for row in rows} == {"validation"}
    assert len(rows) == found["evaluated"]["validation"]["generated"] == 8
    assert {"inputs", "target", "output", "scores"} <= set(rows[0])
    again = run(capsys, "--score_file", str(file))
    names = ["exact_match", "squad_exact_match", "token_f1", "rouge1", "rouge2", "rougeLsum", "bleu", "chrf"]
    for name in names:
        assert again["metrics"]["file"][name] == pytest.approx(found["metrics"]["validation"][name])
        assert again["intervals"]["file"][name] == pytest.approx(found["intervals"]["validation"][name])
    mean = sum(row["scores"]["token_f1"] for row in rows) / len(rows)
    assert mean == pytest.approx(found["metrics"]["validation"]["token_f1"])
    assert found["signatures"] == again["signatures"]


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder", "decoder"])
def test_the_accuracy_of_labels_is_that_of_their_file(architecture, tmp_path, capsys):
    config = small_config(write_pairs(tmp_path / "pairs.jsonl", 400), "supervised", architecture)
    config.eval.rows = None
    train(config, tmp_path / "run")
    file = tmp_path / "answers.jsonl"
    found, rows = run(capsys, "--workdir", str(tmp_path / "run"), "--predictions", str(file)), read(file)
    assert len(rows) == found["evaluated"]["validation"]["used"] == 20
    right = sum(row["target"] == row["output"] for row in rows) / len(rows)
    assert right == pytest.approx(found["metrics"]["validation"]["accuracy"])
    low, high = found["intervals"]["validation"]["accuracy"]
    assert low <= right <= high
    for row in rows:
        assert set(row["scores"]) == {"about the sea", "other"}
        assert max(row["scores"], key=row["scores"].get) == row["output"]
    with_pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {(row["target"]) for row in rows} <= {pair["targets"] for pair in with_pairs}


def test_windows_have_no_answers_to_save(tmp_path, capsys):
    config = small_config(write_texts(tmp_path / "texts"))
    config.budget.steps = 1
    train(config, tmp_path / "run")
    said = refusal(capsys, "--workdir", str(tmp_path / "run"), "--predictions", str(tmp_path / "p.jsonl"))
    assert "span_corruption has no answers to save" in said


def test_any_table_with_target_and_output_is_scored(tmp_path, capsys):
    rows = [{"target": ["a dog", "the hound"], "output": "hound", "id": 7}, {"target": ["cat"], "output": "dog"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(capsys, "--score_file", str(tmp_path / "a.jsonl"))
    assert found["metrics"]["file"]["squad_exact_match"] == 0.5
    assert found["evaluated"]["file"] == {"used": 2, "of": 2}
    with gzip.open(tmp_path / "b.tsv.gz", "wt") as file:
        file.write("output\ttarget\nhound\tthe hound\ndog\tcat\n")
    evaluate.main(["--score_file", str(tmp_path / "b.tsv.gz")])
    printed = capsys.readouterr().out
    assert "squad_exact_match" in printed and "0.5000" in printed and "tok:13a" in printed


def test_answers_with_sentinels_are_counted(tmp_path, capsys):
    rows = [{"target": "a dog", "output": "<extra_id_0> a dog"}, {"target": "a dog", "output": "dog"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(capsys, "--score_file", str(tmp_path / "a.jsonl"))
    assert found["metrics"]["file"]["answers_with_sentinels"] == 0.5
    evaluate.main(["--score_file", str(tmp_path / "a.jsonl")])
    assert "answers_with_sentinels" in capsys.readouterr().out


def test_a_model_of_spans_writes_no_sentinels_as_answers_to_pairs(tmp_path, capsys):
    """It may only generate what the targets of pairs hold, also without any training on pairs."""
    train(small_config(write_texts(tmp_path / "texts")), tmp_path / "run")
    source = write_pairs(tmp_path / "pairs.jsonl", 12)
    zero_shot = ["name=supervised", "targets_length=16", "pack=False"]
    found = run(capsys, "--checkpoint", str(tmp_path / "run"), f"--config.data.validation.source={source}",
                "--config.data.labels=False", *(f"--config.objective.{each}" for each in zero_shot))  # fmt: skip
    assert found["metrics"]["validation"]["answers_with_sentinels"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"target": "a"}\n', "has no column 'output'"),
        ('{"target": [], "output": "a"}\n', "'target' is an empty list"),
        ('{"target": null, "output": "a"}\n', "'target' is null"),
        ("nonsense\n", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_with_its_line(tmp_path, capsys, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    assert message in refusal(capsys, "--score_file", str(tmp_path / "a.jsonl"))


def test_config_fields_have_no_meaning_for_a_file(tmp_path, capsys):
    said = refusal(capsys, "--score_file", str(tmp_path / "a.jsonl"), "--config.eval.rows=3")
    assert "--config.eval.rows=3 has no meaning with --score_file" in said
