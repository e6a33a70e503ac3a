"""Preview for people: marks where there are no colours, boundaries, and what the examples came to together."""

import io
import json
import re

import pytest
from rich.console import Console

from t5lite import preview
from t5lite.config import to_dict
from t5lite.preview import show, summarise
from t5lite.run.examples import make_training_examples, measure_noise
from t5lite.run.experiment import open_experiment
from tests.small import small_config, write_pairs, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def experiment(texts):
    """Of an objective and an architecture, opened once."""
    opened = {}

    def get(objective, architecture="encoder_decoder"):
        if (objective, architecture) not in opened:
            config = small_config(texts, objective, architecture)
            config.tokenizer.specials = ("[MASK]", "[CLS]", "[SEP]", "[NLU]", "[NLG]", "[S2S]")
            opened[objective, architecture] = open_experiment(config)
        return opened[objective, architecture]

    return get


LINE = re.compile(r"^(\w+) \(\d+ tokens\): ((?:.|\n)*?)(?=\n\w+ \(\d+ tokens\)|\nmasked|\npadding)", re.MULTILINE)


def shown(experiment, count=1, **terminal):
    """All that is printed of `count` examples, and {title of a line: what it says} of the last."""
    console = Console(highlight=False, record=True, width=4000, file=io.StringIO(), **terminal)
    for seen in make_training_examples(experiment, 0, count):
        show(experiment, seen, console)
    said = console.export_text(styles=bool(terminal))
    return said, dict(LINE.findall(said))


def test_in_a_pipe_noise_stands_in_brackets(experiment):
    _, lines = shown(experiment("span_corruption"))
    noise = re.findall("⟦(.*?)⟧", lines["window"], re.S)
    targets = re.split("<extra_id_[0-9]+>", lines["targets"].removesuffix("</s>").rstrip())
    assert noise and [span.strip() for span in noise] == [span.strip() for span in targets[1:]]
    assert "⟦" not in lines["inputs"] and lines["inputs"].rstrip().endswith("</s>")


def test_on_a_terminal_colours_take_the_place_of_brackets(experiment):
    said, _ = shown(experiment("span_corruption"), force_terminal=True, color_system="standard")
    assert "⟦" not in said and "\x1b[" in said


@pytest.mark.parametrize(("objective", "architecture"), [("mlm", "encoder"), ("bert_style", "encoder_decoder")])
def test_tokens_replaced_by_others_are_marked_too(experiment, objective, architecture):
    said, _ = shown(experiment(objective, architecture), count=24)
    replaced = 0
    for line in re.findall(r"^inputs \(\d+ tokens\): (.*)", said, re.M):
        marked = re.findall("⟦(.*?)⟧", line)
        replaced += any(re.sub(r"\[MASK\]|<extra_id_0>", "", each).strip() for each in marked)
        assert not re.search(r"\[MASK\]|<extra_id_0>", re.sub("⟦.*?⟧", "", line))
    assert replaced > 0


def test_a_decoders_loss_begins_at_a_mark(experiment):
    _, lines = shown(experiment("span_corruption", "decoder"))
    inputs, targets = lines["targets"].split(" ▸ ")
    assert inputs.endswith("</s>") and targets.startswith("<extra_id_0>") and "inputs" not in lines


def test_a_summary_puts_what_came_beside_what_is_expected(experiment):
    opened = experiment("ul2")
    found = measure_noise(make_training_examples(opened, 0, 400), opened.objective)
    assert [each.name for each in found] == [member.name for member in opened.objective.members]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summarise(found, "title"))
    (line,) = re.findall(r"X \(3, \.5\) (.*)", console.export_text())
    assert "(14.3%)" in line and "50.0% (50.0%)" in line
    assert sum(len(each.padding) for each in found) == 400


def test_the_summary_alone(texts, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        f"from tests.small import small_config\ndef get_config(arg=None):\n    return small_config({texts!r})\n"
    )
    preview.main(["--config", str(path), "--n", "20", "--summary", "--config.objective.fim_rate=0.3"])
    said = capsys.readouterr()
    assert "14.7% (14.7%)" in said.out and "example 0" not in said.out
    assert said.err.count("note: config.objective.fim_rate=0.3 changes nothing in span_corruption") == 1
    with pytest.raises(SystemExit) as stop:
        preview.main(["--config", str(path), "--n", "0"])
    assert stop.value.code == 2 and "argument --n: must be from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_the_balance_of_labels_is_that_of_the_pairs_that_are_read(architecture, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    config = small_config(write_pairs(tmp_path / "pairs.jsonl", 400), "supervised", architecture)
    config.data.train.limit_per_label = 5
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    preview.main(["--config", str(tmp_path / "config.json"), "--n", "2", "--summary"])
    lines = capsys.readouterr().out.partition("labels of the data")[2].splitlines()
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    held_out = [row["targets"] for row in rows[19::20]]
    for label in ("about the sea", "other"):
        (line,) = (line for line in lines if label in line)
        share = f"{held_out.count(label)} ({held_out.count(label) / len(held_out):.1%})"
        assert "5 (50.0%)" in line and share in line
