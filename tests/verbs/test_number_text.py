"""Numbers as text (objective.answer=number_text): rounded as by T5, generated, and compared as numbers."""

import json

import numpy as np
import pytest
from scipy import stats

from t5lite import evaluate, preview
from t5lite.config import to_dict
from t5lite.data.answered import round_to_text
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.small import small_config


def write_rows(path, rows=200, last="4.0"):
    rng = np.random.default_rng(0)
    goods = rng.integers(0, 6, rows)
    lines = [{"inputs": " ".join(["good"] * int(n) + ["bad"] * (5 - int(n))), "targets": f"{n}.1"} for n in goods]
    lines[-1]["targets"] = last
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"files:{path}"


def config_for(folder, architecture="encoder_decoder", **fields):
    config = small_config(write_rows(folder / "rows.jsonl", **fields), "supervised", architecture)
    config.objective.answer, config.data.train.number_step = "number_text", 0.2
    config.tokenizer.vocab_size, config.objective.targets_length, config.batch_size = 274, 8, 32
    config.eval.rows, config.eval.generate_rows = None, 50
    config.budget.steps = config.checkpoint.every_steps = 2
    return config


def test_numbers_are_rounded_as_by_t5():
    """T5: as_string(round(5 · label) / 5, precision=1), in float32, with halves to even."""
    labels = [0.0, 5.0, 3.75, 2.5, 4.1, 0.1, 1.29, 4.999, 2.857, 3.3, 0.7]
    expected = [f"{np.round(np.float32(label) * np.float32(5)) / np.float32(5):.1f}" for label in labels]
    assert [round_to_text(label, 0.2) for label in labels] == expected
    assert expected[3:6] == ["2.4", "4.0", "0.0"]


@pytest.mark.parametrize(
    ("number", "step", "text"),
    [(-0.04, 0.2, "0.0"), (-0.2, 0.2, "-0.2"), (7.3, 1.0, "7"), (7.5, 0.25, "7.50"), (1234.0, 50.0, "1250"),
     (3.14159, 0.001, "3.142"), (1e300, 0.5, f"{10**300}.0")],
)  # fmt: skip
def test_a_rounded_number_has_the_decimals_of_the_step(number, step, text):
    found = round_to_text(number, step)
    assert (found if number < 1e16 else float(found)) == (text if number < 1e16 else float(text))


@pytest.mark.parametrize("architecture", ["encoder_decoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_model_learns_to_write_numbers_and_is_compared_with_them(tmp_path, capsys, architecture):
    config = config_for(tmp_path, architecture)
    config.budget.steps = config.checkpoint.every_steps = 60
    config.schedule.rate, config.eval.every_steps = 1e-2, 30
    config.early_stopping.metric = "validation/pearson"
    trained = train(config, tmp_path / "run")["metrics"]["validation"]
    assert {"pearson", "spearman", "rmse", "mean_rmse", "not_numbers"} <= set(trained)
    assert not {"accuracy", "exact_match", "bleu"} & set(trained)
    answers = tmp_path / "answers.jsonl"
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(tmp_path / "run"), "--json", "--predictions", str(answers)])
    printed = json.loads(capsys.readouterr().out)
    metrics = printed["metrics"]["validation"]
    assert metrics["pearson"] == pytest.approx(trained["pearson"]) and metrics["not_numbers"] == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {row["target"] for row in rows} <= {"0.0", "1.2", "2.0", "3.2", "4.0", "5.2"}
    sides = [[float(row[name]) for row in rows] for name in ("target", "output")]
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(*sides).statistic) and metrics["pearson"] > 0.8
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(*sides).statistic)
    low, high = printed["intervals"]["validation"]["pearson"]
    assert low <= metrics["pearson"] <= high


def test_an_untrained_model_writes_no_numbers_and_they_are_counted(tmp_path):
    config = config_for(tmp_path)
    config.schedule.rate = 1e-9
    metrics = train(config, tmp_path / "run")["metrics"]["validation"]
    assert metrics["not_numbers"] > 0.5 and np.isfinite(metrics["pearson"]) and np.isfinite(metrics["rmse"])


def test_preview_shows_the_rounded_text(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config_for(tmp_path))))
    preview.main(["--config", str(tmp_path / "config.json"), "--n", "8"])
    printed = capsys.readouterr().out
    assert "targets" in printed and ".1 " not in printed


def test_without_a_step_numbers_are_not_rounded(tmp_path, capsys):
    config = config_for(tmp_path)
    config.data.train.number_step = None
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    preview.main(["--config", str(tmp_path / "config.json"), "--n", "8"])
    assert ".1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"objective.answer": "text"}, "number_step=0.2: only config.objective.answer=number_text rounds its targets"),
        ({"model.architecture": "encoder"}, "number_text: needs config.model.architecture encoder_decoder or decoder"),
        ({"data.train.number_step": 0.0}, "number_step: must be from 1e-06"),
    ],
)
def test_a_mistake_is_named(tmp_path, fields, problem):
    config = config_for(tmp_path)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=problem):
        train(config, tmp_path / "run")


def test_a_target_that_is_no_number_is_named_with_its_place(tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl, line 200: the target 'very good' is not a number"):
        train(config_for(tmp_path, last="very good"), tmp_path / "run")
