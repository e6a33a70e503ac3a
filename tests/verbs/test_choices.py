"""Answers that are chosen from a list: their likelihood by generate, and by evaluate for labels."""

import json
import re

import numpy as np
import pytest

from t5lite import evaluate, generate
from t5lite.run.answers import Options, Request, open_answerer
from t5lite.train import train
from tests.small import small_config, write_pairs, write_texts

CHOICES = ["about the sea", "other", "a whale that is white and old"]

SLOW_DECODER = pytest.param("pairs_decoder", marks=pytest.mark.slow)


def make(folder, objective, architecture):
    source = write_pairs(folder / "pairs.jsonl") if objective == "supervised" else write_texts(folder / "texts")
    train(small_config(source, objective, architecture), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: workdir}."""
    kinds = {
        "pairs": ("supervised", "encoder_decoder"),
        "pairs_decoder": ("supervised", "decoder"),
        "language_model": ("causal_lm", "decoder"),
        "classifier": ("supervised", "encoder"),
    }
    return {name: make(tmp_path_factory.mktemp(name), *kind) for name, kind in kinds.items()}


def run(capsys, *arguments):
    """Return (the answers as JSON, stderr) of generate."""
    generate.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def flags(choices):
    return [part for choice in choices for part in ("--choices", choice)]


@pytest.mark.parametrize("name", ["pairs", SLOW_DECODER, "language_model"])
def test_choices_are_scored_like_given_targets_and_come_best_first(runs, name, capsys):
    (answer,), _ = run(capsys, "--checkpoint", runs[name], "--input", "the sea", *flags(CHOICES))
    requests = [Request("the sea", target=choice) for choice in CHOICES]
    scored = {each["target"]: each for each in open_answerer(runs[name]).scores(requests)}
    assert answer["score_by"] == "sum" and {each["output"] for each in answer["answers"]} == set(CHOICES)
    for each in answer["answers"]:
        assert each["tokens"] == scored[each["output"]]["tokens"]
        assert each["score"] == each["logprob"] == pytest.approx(scored[each["output"]]["logprob"], rel=1e-4)
    scores = [each["score"] for each in answer["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert {name: answer[name] for name in answer["answers"][0]} == answer["answers"][0]


@pytest.mark.parametrize("name", ["pairs", "language_model"])
def test_scores_are_divided_by_tokens_or_bytes(runs, name, capsys):
    choices = ["other", "naïve – the sea", "a"]
    for score_by, count in (
        ("token", lambda each: len(each["tokens"])),
        ("byte", lambda each: len(each["output"].encode())),
    ):
        command = ["--checkpoint", runs[name], "--input", "the", "--score_by", score_by, *flags(choices)]
        (answer,), _ = run(capsys, *command)
        assert answer["score_by"] == score_by
        for each in answer["answers"]:
            assert each["score"] == pytest.approx(each["logprob"] / count(each), rel=1e-5)
        assert answer["score"] == max(each["score"] for each in answer["answers"])


def test_rows_have_choices_of_their_own_beside_rows_that_are_answered_freely(runs, tmp_path, capsys):
    lines = [{"inputs": "the sea", "choices": CHOICES, "id": 1}, {"inputs": "a whale", "id": 2},
             {"inputs": "old man " * 9, "choices": ["yes", 7]}, {"inputs": "the", "choices": None},
             {"inputs": "sea", "choices": ["only"]}]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers, _ = run(capsys, "--checkpoint", runs["pairs"], "--input_file", tmp_path / "q.jsonl")
    assert [len(each.get("answers", ())) for each in answers] == [3, 0, 2, 0, 1]
    assert {each["output"] for each in answers[2]["answers"]} == {"yes", "7"}
    assert (answers[0]["id"], answers[1]["id"]) == (1, 2) and not any("choices" in each for each in answers)
    generator = open_answerer(runs["pairs"])
    for line, answer in zip(lines, answers, strict=True):
        choices = tuple(map(str, line.get("choices") or ()))
        (alone,) = generator.answers([Request(line["inputs"], choices=choices)])
        assert alone["output"] == answer["output"] and alone["logprob"] == pytest.approx(answer["logprob"], abs=1e-4)


def test_a_file_of_choices_and_what_people_read(runs, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\ufeffother\r\nabout the sea\n\n")
    generate.main(["--checkpoint", str(runs["pairs"]), "--input", "the sea", "--score_by=byte",
                   "--choices_file", str(tmp_path / "labels.txt")])  # fmt: skip
    out, err = capsys.readouterr()
    (expected,) = open_answerer(runs["pairs"]).answers(
        [Request("the sea")], Options(choices=("other", "about the sea"), score_by="byte")
    )
    assert out.splitlines() == [f"{each['score']:.4f}\t{each['output']}" for each in expected["answers"]]
    assert "the score of an answer is the sum of log-probabilities divided by the bytes of the text in UTF-8" in err


def test_a_classifier_chooses_among_some_of_its_labels(runs, capsys):
    free = next(open_answerer(runs["classifier"]).answers([Request("the whale")]))
    other = next(label for label in ("about the sea", "other") if label != free["output"])
    (answer,), _ = run(capsys, "--checkpoint", runs["classifier"], "--input", "the whale", "--choices", other)
    assert answer["output"] == other and answer["logprob"] < free["logprob"]
    both, _ = run(capsys, "--checkpoint", runs["classifier"], "--input", "the whale", *flags([other, free["output"]]))
    assert both[0]["output"] == free["output"] and both[0]["logprob"] == pytest.approx(free["logprob"])
    assert sum(np.exp(each["logprob"]) for each in both[0]["answers"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("classifier", ["--choices", "othr"], "'othr' is not a label of this model; did you mean 'other'"),
        ("classifier", ["--choices", "other", "--score_by", "byte"], "--score_by: the model does not generate"),
        ("pairs", ["--choices", "a", "--choices", "a"], "--choices has the answer 'a' twice"),
        ("pairs", ["--choices", ""], "--choices has an empty answer"),
        ("pairs", ["--choices", "a", "--top_k", "2", "--stop", "x"], "--top_k, --stop: nothing is generated"),
        ("pairs", ["--choices", "a", "--prefix", "b"], "--prefix: nothing is generated"),
        ("pairs", ["--choices", "a", "--score", "--target", "b"], "--score cannot be combined"),
        ("pairs", ["--score_by", "token"], "--score_by has no effect without answers"),
        ("pairs", ["--choices_file", "{tmp}/none"], "cannot read .*none"),
        ("pairs", ["--choices_file", "{tmp}/empty"], "empty is empty; give a list of answers"),
        ("pairs", ["--choices_file", "{tmp}/latin"], "latin, line 2 is not UTF-8 at byte 1"),
    ],
)
def test_mistakes_end_in_one_line(runs, name, arguments, message, tmp_path, capsys):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"a\nb\xe9\n")
    arguments = [part.replace("{tmp}", str(tmp_path)) for part in arguments]
    with pytest.raises(SystemExit) as caught:
        generate.main(["--checkpoint", str(runs[name]), "--input", "the [MASK]", *arguments])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1 and re.search(message, err), err


@pytest.mark.parametrize(
    ("choices", "message"),
    [("a", "'choices' is a str"), ([], "'choices' is empty"), ({"a": 1}, "'choices' is a dict"), ([None], "is null"),
     (["a", "a"], "'a' twice")],
)  # fmt: skip
def test_a_row_with_wrong_choices_is_named(runs, choices, message, tmp_path, capsys):
    lines = [{"inputs": "the", "choices": choices}, {"inputs": "the", "choices": ["a"]}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit):
        generate.main(["--checkpoint", str(runs["pairs"]), "--input_file", str(tmp_path / "q.jsonl"), "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "line 1" in err and message in err


@pytest.mark.parametrize("score_by", ["sum", "token", "byte"])
@pytest.mark.parametrize("name", ["pairs", SLOW_DECODER])
def test_labels_are_compared_by_the_same_scores_in_evaluate(runs, name, score_by, tmp_path, capsys):
    evaluate.main(["--checkpoint", str(runs[name]), f"--config.eval.score_by={score_by}", "--json",
                   "--predictions", str(tmp_path / "p.jsonl")])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["score_by"] == score_by
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    options = Options(choices=("about the sea", "other"), score_by=score_by)
    answers = list(open_answerer(runs[name]).answers([Request(row["inputs"]) for row in rows], options))
    for row, answer in zip(rows, answers, strict=True):
        scores = {each["output"]: each["score"] for each in answer["answers"]}
        assert row["scores"] == pytest.approx(scores, rel=1e-3) and row["output"] == answer["output"]


@pytest.mark.parametrize(("name", "score_by", "message"), [
    ("pairs", "bytes", "'bytes' is unknown; did you mean 'byte'"),
    ("classifier", "byte", "does not write labels of a closed set"),
    ("language_model", "token", "does not write labels of a closed set"),
])  # fmt: skip
def test_a_score_by_without_effect_is_refused(runs, name, score_by, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", str(runs[name]), f"--config.eval.score_by={score_by}"])
    assert message in capsys.readouterr().err
