"""An encoder's life by the verbs: pre-trained, handed over to a classifier and a tagger, evaluated, asked."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from t5lite import bench, evaluate, generate, preview
from t5lite import train as train_verb
from t5lite.run.answers import Request, open_answerer
from t5lite.train import train
from t5lite.training import loop
from t5lite.training.reading import saved_steps
from t5lite.training.record import read_record
from tests.small import sentence, small_config, write_pairs, write_texts

TRANSFORM = ["mlm_transform/dense/kernel", "mlm_transform/norm/scale"]
CONFIG = """
from t5lite.config import parse_arg
from tests.small import small_config

def get_config(arg=None):
    arg = parse_arg(arg, objective="mlm", source={texts!r}, init="")
    config = small_config(arg.source, arg.objective, "encoder")
    if arg.init:
        config.init_from = arg.init
        config.budget.steps, config.schedule.rate = 60, 1e-2
    return config
"""


def write_tagged(path, sentences=400):
    """Whales, and what is white, to its second word where that is "old"."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(sentences):
            words = sentence(rng, int(rng.integers(3, 12))).removesuffix(".").split()
            tags = [{"white": "B-X", "whale": "B-Y"}.get(word, "O") for word in words]
            for i in range(1, len(words)):
                tags[i] = "I-X" if words[i - 1 : i + 1] == ["white", "old"] else tags[i]
            file.write(json.dumps({"inputs": words, "targets": tags}) + "\n")
    return f"files:{path}"


OF_LABELS = {"loss", "accuracy", "macro_f1", "matthews", "calibration_error", "brier"} | {
    "majority_accuracy",
    "majority_macro_f1",
    "most_chosen",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def config(folder):
    (folder / "config.py").write_text(CONFIG.format(texts=write_texts(folder / "texts")))
    return str(folder / "config.py")


@pytest.fixture(scope="module")
def sources(folder):
    return {"supervised": write_pairs(folder / "pairs.jsonl", 400), "tagging": write_tagged(folder / "tags.jsonl")}


@pytest.fixture(scope="module")
def pretrained(folder, config):
    train_verb.main(["--config", f"{config}:objective=mlm_nsp", "--workdir", str(folder / "nsp")])
    return folder / "nsp"


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def fine_tune(config, folder, pretrained, source, objective):
    workdir = folder / objective
    spec = f"{config}:objective={objective},source={source},init={pretrained}"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train_verb.main(["--config", spec, "--workdir", str(workdir)])
    (workdir / "said").write_text(said.getvalue())
    return workdir


@pytest.fixture(scope="module")
def classifier(config, folder, pretrained, sources):
    return fine_tune(config, folder, pretrained, sources["supervised"], "supervised")


@pytest.fixture(scope="module")
def tagger(config, folder, pretrained, sources):
    return fine_tune(config, folder, pretrained, sources["tagging"], "tagging")


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_pretraining_reports_both_losses(pretrained):
    metrics = result_of(pretrained)["metrics"]["validation"]
    assert metrics["loss"] == pytest.approx(metrics["mlm_loss"] + metrics["next_sentence_loss"])
    assert {"perplexity", "token_accuracy", "next_sentence_accuracy", "next_sentence_negatives"} <= set(metrics)
    first, *_, last = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert last["mlm_loss"] < first["mlm_loss"]


@pytest.mark.parametrize(
    ("run", "new", "left"),
    [
        ("classifier", ["classifier/kernel"], [*TRANSFORM, "next_sentence/kernel"]),
        ("tagger", ["tagger/kernel"], [*TRANSFORM, "next_sentence/kernel", "pooler/kernel"]),
    ],
)
def test_all_but_the_heads_is_handed_over(run, new, left, request, pretrained):
    workdir = request.getfixturevalue(run)
    said = (workdir / "said").read_text()
    assert f"1 new ({', '.join(new)}); {len(left)} left out ({', '.join(left)})" in said
    newest = (folder / "checkpoints" / str(saved_steps(folder)[-1]) for folder in (pretrained, workdir))
    before, after = (read_record(checkpoint).shapes("params") for checkpoint in newest)
    assert before.keys() & after.keys() == before.keys() - set(left) == after.keys() - set(new)


# A fast test of a head that goes on with the same labels is in test_convert.py.
@pytest.mark.parametrize(
    "renamed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["the same labels", "as many others"]
)
def test_a_head_goes_on_only_with_the_labels_that_it_was_trained_on(
    renamed, config, folder, classifier, sources, tmp_path
):
    path = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in Path(sources["supervised"].removeprefix("files:")).read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "targets": row["targets"] + "s" * renamed}) + "\n" for row in rows))
    workdir = fine_tune(config, tmp_path, classifier, f"files:{path}", "supervised")
    said = (workdir / "said").read_text()
    assert ("1 new (classifier/kernel); 1 left out (classifier/kernel)" in said) == renamed, said
    assert renamed or "parameters restored\n" in said


def test_a_classifier_learns(classifier):
    metrics = result_of(classifier)["metrics"]["validation"]
    assert set(metrics) == OF_LABELS
    assert metrics["accuracy"] > 0.7 and metrics["loss"] < 0.6


def test_a_tagger_learns(tagger):
    metrics = result_of(tagger)["metrics"]["validation"]
    assert set(metrics) == {"loss", "accuracy", "macro_f1", "majority_accuracy", "most_chosen", "entity_f1"}
    assert metrics["accuracy"] > 0.95 and metrics["entity_f1"] > 0.9


@pytest.mark.parametrize("run", ["pretrained", "classifier", "tagger"])
def test_evaluate_gives_what_the_run_ended_with_and_shows_examples(run, request, capsys):
    workdir = request.getfixturevalue(run)
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(workdir), "--json", "--examples", "2"])
    said = capsys.readouterr()
    metrics = json.loads(said.out)["metrics"]["validation"]
    assert metrics == pytest.approx(result_of(workdir)["metrics"]["validation"], rel=1e-4)
    assert {"pretrained": "[MASK]", "classifier": "target: ", "tagger": "O | "}[run] in said.err
    assert "[CLS]" in said.err and "output: " in said.err


def test_evaluation_of_other_text_knows_the_labels_of_training(classifier, folder, capsys):
    other = write_pairs(folder / "other.jsonl", 10, seed=5)
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(classifier), f"--config.data.validation.source={other}", "--json"])
    (said,) = lines_of(capsys)
    assert set(said["metrics"]["validation"]) == OF_LABELS


def test_losses_compare_whatever_was_masked_in_training(config, pretrained, tmp_path):
    made = small_config(f"files:{pretrained.parent}/texts/*.txt", "mlm_nsp", "encoder")
    made.init_from, made.schedule.rate, made.budget.steps = str(pretrained), 0.0, 1
    made.objective.noise_density, made.objective.replacement = 0.3, "exact"
    metrics = train(made, tmp_path / "run")["metrics"]["validation"]
    assert metrics == pytest.approx(result_of(pretrained)["metrics"]["validation"], rel=1e-4)


def test_an_interrupted_run_ends_as_if_never_interrupted(pretrained, config, tmp_path, monkeypatch):
    save = loop.Checkpoints.save

    def save_and_stop(self, state, progress):
        save(self, state, progress)
        self.wait()
        raise RuntimeError("stopped")

    command = ["--config", f"{config}:objective=mlm_nsp", "--workdir", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_and_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_verb.main(command)
    assert saved_steps(tmp_path / "run") == [3]
    train_verb.main(command)
    assert result_of(tmp_path / "run")["params_sha256"] == result_of(pretrained)["params_sha256"]


def test_preview_shows_what_is_asked(config, sources, pretrained, capsys):
    capsys.readouterr()
    preview.main(["--config", f"{config}:objective=mlm_nsp", "--n", "40", "--json"])
    examples = lines_of(capsys)
    assert {example["answers"]["next sentence"] for example in examples} == {0, 1}
    for example in examples:
        assert len(example["inputs"]) == len(example["targets"]) == len(example["weights"]) == 32
        assert sum(example["weights"]) == 5 == sum(example["spans"]) == round(29 * example["mask_rate"])
        assert example["token_types"] == sorted(example["token_types"]) and len(example["window"]) == 29
    for objective, expected in (("supervised", "label: "), ("tagging", "tags: "), ("mlm", "[MASK]")):
        source = f",source={sources[objective]},init={pretrained}" if objective in sources else ""
        preview.main(["--config", f"{config}:objective={objective}{source}", "--n", "1"])
        assert expected in capsys.readouterr().out


def test_generate_fills_blanks_names_labels_and_tags_words(pretrained, classifier, tagger, capsys):
    def answer(workdir, text):
        capsys.readouterr()
        generate.main(["--checkpoint", str(workdir), "--input", text, "--json"])
        (said,) = lines_of(capsys)
        assert said["logprob"] < 0
        return said["output"]

    filled = answer(pretrained, "the [MASK] whale [MASK].")
    assert "[MASK]" not in filled and filled.startswith("the") and "whale" in filled
    assert answer(classifier, "the old whale " * 40) in ("about the sea", "other")
    said = answer(tagger, "said white old said").split()
    assert [word.partition("/")[0] for word in said] == ["said", "white", "old", "said"] and said[1] == "white/B-X"


@pytest.mark.parametrize(
    "flag",
    [
        "--temperature=1",
        "--num_beams=4",
        "--stop=x",
        "--suppress=the",
        "--prefix=a",
        "--forced_bos=a",
        "--min_new_tokens=2",
    ],
)
def test_flags_of_generation_are_refused(tagger, capsys, flag):
    with pytest.raises(SystemExit):
        generate.main(["--checkpoint", str(tagger), "--input", "a whale", flag])
    assert f"{flag.partition('=')[0]}: the model does not generate text" in capsys.readouterr().err


def test_tags_and_filled_blanks_are_not_chosen_from_a_list(pretrained, tagger, capsys):
    for checkpoint in (pretrained, tagger):
        with pytest.raises(SystemExit):
            generate.main(["--checkpoint", str(checkpoint), "--input", "a [MASK]", "--choices", "B-X"])
        assert "chooses among answers only if its answers are labels of texts" in capsys.readouterr().err


def test_texts_are_answered_together_as_they_are_alone(pretrained, classifier, tagger):
    """In their order, whatever their lengths and the number of blanks."""
    texts = [
        "the [MASK] whale [MASK] [MASK].",
        "[MASK]",
        "the old whale said [MASK]. " + "the white sea. " * 3,
        "a [MASK]",
    ]
    for workdir in (pretrained, classifier, tagger):
        reader = open_answerer(workdir)
        together = list(reader.answers([Request(text, fields={"id": i}) for i, text in enumerate(texts)], batch_size=3))
        for index, (text, answer) in enumerate(zip(texts, together, strict=True)):
            (alone,) = reader.answers([Request(text)])
            assert answer["id"] == index and answer["input"] == text
            assert (answer["output"], answer["tokens"]) == (alone["output"], alone["tokens"])
            np.testing.assert_allclose(answer["token_logprobs"], alone["token_logprobs"], rtol=1e-4, atol=1e-5)
    assert [len(answer["token_logprobs"]) for answer in reader.answers([Request("said white"), Request("")])] == [2, 0]


def test_generate_needs_a_blank(pretrained, capsys):
    with pytest.raises(SystemExit) as stop:
        generate.main(["--checkpoint", str(pretrained), "--input", "the whale"])
    assert stop.value.code == 2 and "fills in [MASK], but the text has no [MASK]" in capsys.readouterr().err


def test_bench_needs_no_data(config, capsys, monkeypatch):
    monkeypatch.setattr("t5lite.training.budget.PROBE_SECONDS", 0.0)
    capsys.readouterr()
    bench.main(["--config", f"{config}:objective=tagging", "--json"])
    (said,) = lines_of(capsys)
    assert said["encoder_length"] == 32 and said["decoder_length"] == 0 and said["step_seconds"] > 0


def test_free_text_needs_a_decoder(folder, capsys):
    path = folder / "free.jsonl"
    texts = [sentence(np.random.default_rng(i), 20) for i in range(60)]
    path.write_text("".join(json.dumps({"inputs": text, "targets": text[:40]}) + "\n" for text in texts))
    (folder / "free.py").write_text(
        "from tests.small import small_config\n"
        f"def get_config(arg=None):\n    return small_config('files:{path}', 'supervised', 'encoder')\n"
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_verb.main(["--config", str(folder / "free.py"), "--workdir", str(folder / "free")])
    assert stop.value.code == 2 and "free-text targets need a decoder" in capsys.readouterr().err
