"""The verb generate: answers to texts and to lines of JSON, scores, conversations, and errors."""

import contextlib
import gzip
import io
import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t5lite import generate
from t5lite.decoding.settings import Settings
from t5lite.generate import fill_blanks
from t5lite.run.answering import PreparedRequest, answer_in_order
from t5lite.run.answers import Options, Request, open_answerer
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.data import released
from tests.small import small_config, write_pairs, write_texts


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    train(small_config(write_texts(folder / "texts")), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    train(small_config(write_pairs(folder / "pairs.jsonl"), "supervised"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    train(small_config(write_texts(folder / "texts"), "causal_lm", "decoder"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def short_positions(tmp_path_factory):
    """A language model with positions for 40 tokens."""
    folder = tmp_path_factory.mktemp("positions")
    config = small_config(write_texts(folder / "texts"), "causal_lm", "decoder")
    config.tokenizer.path = f"hf:{released.neox(folder / 'released')}"
    config.model.positions, config.model.max_positions, config.budget.steps = "learned", 40, 1
    train(config, folder / "run")
    return folder / "run"


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        generate.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr()


def failed(arguments, capsys):
    out, err = fails(arguments, capsys)
    assert out == "" and err.count("\n") == 1
    return err


def test_lines_of_json_are_answered_in_order_and_keep_their_fields(pairs, tmp_path, capsys):
    lines = [{"id": i, "inputs": "the sea " * (1 + i % 5), "targets": "unused"} for i in range(40)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate.main(["--checkpoint", str(pairs), "--input_file", str(tmp_path / "q.jsonl"), "--json", "--batch_size=8"])
    answers = said(capsys)
    assert [answer["id"] for answer in answers] == list(range(40))
    assert [answer["input"] for answer in answers] == [line["inputs"] for line in lines]
    for answer in answers:
        assert len(answer["tokens"]) == len(answer["token_logprobs"])
        assert answer["logprob"] == pytest.approx(sum(answer["token_logprobs"]), rel=1e-4)


def test_a_line_may_have_fields_that_are_called_like_those_of_its_answer(pairs, tmp_path, capsys):
    line = {"inputs": "the sea", "error": "none", "cut": "short", "output": 7, "score": 0.5, "given": 1, "id": 3}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    generate.main(["--checkpoint", str(pairs), "--input_file", str(tmp_path / "q.jsonl"), "--json"])
    (answer,) = said(capsys)
    assert answer["id"] == 3 and isinstance(answer["output"], str) and "error" not in answer and "cut" not in answer
    assert answer["given"] == {name: line[name] for name in ("error", "cut", "output", "score", "given")}


def test_a_text_is_answered_alike_alone_and_among_others(spans):
    generator = open_answerer(spans)
    texts = ["the sea", "the <extra_id_0> went", "a white whale said the old captain of the cold ship.", "x"]
    for settings in (Settings(max_new_tokens=9), Settings(max_new_tokens=9, num_beams=3)):
        together = list(generator.answers([Request(text) for text in texts], Options(settings)))
        for text, answer in zip(texts, together, strict=True):
            (alone,) = generator.answers([Request(text)], Options(settings))
            assert alone["tokens"] == answer["tokens"]
            assert alone["token_logprobs"] == pytest.approx(answer["token_logprobs"], abs=1e-4)


def test_a_given_answer_scores_as_when_it_is_generated(pairs, spans, language_model, capsys):
    for workdir, text, target in (
        (pairs, "the sea", "about the sea"),
        (spans, "the <extra_id_0> went", "<extra_id_0> whale"),
        (language_model, "the", " sea went"),
    ):
        command = ["--checkpoint", str(workdir), "--input", text, "--json"]
        generate.main([*command, "--prefix", target])
        (answer,) = said(capsys)
        generate.main([*command, "--score", "--target", target])
        (scored,) = said(capsys)
        count = len(scored["tokens"]) - (workdir != language_model)  # EOS
        assert scored["tokens"][:count] == answer["tokens"][:count] and count > 1
        assert scored["token_logprobs"][:count] == pytest.approx(answer["token_logprobs"][:count], abs=1e-4)


def test_targets_end_with_eos_except_for_a_language_model(pairs, language_model, capsys):
    generate.main(["--checkpoint", str(pairs), "--input", "the sea", "--score", "--target", "other", "--json"])
    (scored,) = said(capsys)
    eos = open_answerer(pairs).tokenizer.vocabulary.eos
    assert scored["tokens"][-1] == eos and scored["target"] == "other"
    assert scored["logprob"] == pytest.approx(sum(scored["token_logprobs"]), rel=1e-5)
    generate.main(["--checkpoint", str(language_model), "--input", "the", "--score", "--target", " sea", "--json"])
    (scored,) = said(capsys)
    tokenizer = open_answerer(language_model).tokenizer
    assert tokenizer.encode("the").tolist() + scored["tokens"] == tokenizer.encode("the sea").tolist()
    assert eos not in scored["tokens"]


def test_scores_add_up_over_a_text_and_its_halves(language_model):
    generator = open_answerer(language_model)
    whole, first, second = (
        next(generator.scores([Request(text, target=target)]))
        for text, target in (("the", " sea went old"), ("the", " sea"), ("the sea", " went old"))
    )
    assert whole["tokens"] == first["tokens"] + second["tokens"]
    assert whole["logprob"] == pytest.approx(first["logprob"] + second["logprob"], abs=1e-4)


def test_several_answers_come_best_first(spans, capsys):
    command = ["--checkpoint", str(spans), "--input", "the <extra_id_0> went", "--max_new_tokens", "6"]
    generate.main([*command, "--num_beams", "4", "--num_return", "3", "--json"])
    (answer,) = said(capsys)
    scores = [each["score"] for each in answer["answers"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and answer["score"] == scores[0]
    generate.main([*command, "--num_beams", "4", "--num_return", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split("\t")[0]) for line in lines] == pytest.approx(scores, abs=1e-3)


def test_an_answer_ends_before_a_stop(language_model):
    generator = open_answerer(language_model)
    (free,) = generator.answers([Request("the")], Options(Settings(max_new_tokens=40)))
    stop = free["output"][len(free["output"]) // 2 :][:3]
    (stopped,) = generator.answers([Request("the")], Options(Settings(max_new_tokens=40), stop=(stop,)))
    assert stopped["output"] == free["output"][: free["output"].index(stop)]
    assert stopped["tokens"] == free["tokens"][: len(stopped["tokens"])]
    assert stop in generator.tokenizer.decode(stopped["tokens"])
    assert stopped["logprob"] == pytest.approx(sum(stopped["token_logprobs"]), rel=1e-5)


def test_answers_begin_with_the_prefix_and_its_score_counts(pairs, capsys):
    generate.main(["--checkpoint", str(pairs), "--input", "the sea", "--prefix", "about the", "--json"])
    (answer,) = said(capsys)
    assert answer["output"].startswith("about the")
    prefix = open_answerer(pairs).tokenizer.encode("about the").tolist()
    assert answer["tokens"][: len(prefix)] == prefix and answer["token_logprobs"][0] < 0


def test_answers_have_a_shortest_length_and_repeat_no_ngram(language_model, capsys):
    command = ["--checkpoint", str(language_model), "--input", "the", "--json", "--max_new_tokens", "40"]
    for more in ([], ["--num_beams", "3"], ["--temperature", "1"]):
        generate.main([*command, *more, "--no_repeat_ngram_size", "2", "--min_new_tokens", "30"])
        (answer,) = said(capsys)
        ids = [*open_answerer(language_model).encode("the").tolist(), *answer["tokens"]]
        bigrams = list(itertools.pairwise(ids))
        assert len(answer["tokens"]) >= 30 and len(set(bigrams)) == len(bigrams)


def test_a_forced_token_begins_the_answer_and_is_no_part_of_its_text(pairs, spans, language_model, capsys):
    for workdir, text, forced in ((pairs, "the sea", "<extra_id_3>"), (spans, "the <extra_id_0>", "<extra_id_7>"),
                                  (language_model, "the", " sea")):  # fmt: skip
        generator = open_answerer(workdir, forced_bos=forced)
        (token,) = generator.conventions.front
        assert generator.tokenizer.decode([token]).strip() == forced.strip()
        command = ["--checkpoint", str(workdir), "--input", text, "--forced_bos", forced, "--json"]
        for more in ([], ["--num_beams", "2"], ["--temperature", "1", "--num_return", "2"]):
            generate.main([*command, *more])
            (answer,) = said(capsys)
            assert all(each["tokens"][0] == token for each in answer.get("answers", [answer]))
            assert answer["output"] == generator.tokenizer.decode(generator.conventions.text_tokens(answer["tokens"]))
        generate.main([*command, "--prefix", "old man"])
        (answer,) = said(capsys)
        assert answer["tokens"][0] == token and answer["output"].startswith("old man")
        generate.main([*command, "--score", "--target", "old man"])
        (scored,) = said(capsys)
        count = len(scored["tokens"]) - (workdir != language_model)  # EOS
        assert scored["tokens"][:count] == answer["tokens"][:count]
        assert scored["token_logprobs"][:count] == pytest.approx(answer["token_logprobs"][:count], abs=1e-4)


def test_suppressed_tokens_are_not_generated(language_model, capsys):
    generate.main(["--checkpoint", str(language_model), "--input", "the", "--json"])
    (free,) = said(capsys)
    tokenizer = open_answerer(language_model).tokenizer
    often = max(set(free["tokens"]), key=free["tokens"].count)
    text = tokenizer.decode([tokenizer.encode("a")[-1], often])[1:]
    generate.main(["--checkpoint", str(language_model), "--input", "the", "--json", "--suppress", text])
    (answer,) = said(capsys)
    assert often not in answer["tokens"]


def test_sentinels_come_only_where_the_text_has_a_blank(spans):
    generator = open_answerer(spans)
    texts = ["the sea", "the <extra_id_0> went", "old man"]
    answers = list(generator.answers([Request(text) for text in texts], Options(Settings(40, temperature=3.0))))
    assert ["<extra_id_" in answer["output"] for answer in answers] == [False, True, False]


def test_tokens_that_are_not_text_are_named_unless_the_text_has_a_blank(spans, monkeypatch, tmp_path, capsys):
    generator = open_answerer(spans)
    leaks, vocabulary = generator.find_leaks, generator.tokenizer.vocabulary
    assert leaks(Request("the sea"), "<extra_id_3> sea <extra_id_3>") == ["<extra_id_3>"]
    assert leaks(Request("the <extra_id_0> sea"), "<extra_id_0> old <extra_id_1>") == []
    assert leaks(Request("the sea", prefix="<extra_id_0>"), "<extra_id_0> old") == []
    assert leaks(Request("the sea"), "old", [5, vocabulary.eos]) == leaks(Request("the sea"), "extra_id_0") == []
    assert leaks(Request("the sea"), "old", [5, vocabulary.size - 2, 6]) == ["<extra_id_1>"]

    def answers(self, requests, *arguments):
        for index, request in enumerate(requests):
            yield {"input": request.input, "output": "<extra_id_0> sea" if index < 2 else "sea", "tokens": [5]}

    (tmp_path / "q.txt").write_text("a\nthe\nold\n")
    monkeypatch.setattr("t5lite.run.generator.Generator.answers", answers)
    generate.main(["--checkpoint", str(spans), "--input_file", str(tmp_path / "q.txt")])
    out, err = capsys.readouterr()
    assert out.count("\n") == 3 and err.count("\n") == 1
    assert "2 of 3 answers hold tokens that are not text ('<extra_id_0>')" in err


def test_blanks_are_filled():
    text = "The <extra_id_0> sat on<extra_id_1>."
    assert fill_blanks(text, "<extra_id_0> cat<extra_id_1> the mat") == "The cat sat on the mat."
    assert fill_blanks(text, "<extra_id_0> cat") == "The cat sat on<extra_id_1>."
    assert fill_blanks(text, "nothing") == text


def test_the_stream_is_the_answer(language_model):
    generator, options = open_answerer(language_model), Options(Settings(max_new_tokens=30))
    parts = list(generator.stream(Request("the"), options))
    (answer,) = generator.answers([Request("the")], options)
    assert len(parts) > 1 and "".join(parts) == answer["output"].rstrip("\ufffd")


def run_on_a_terminal(arguments, typed=""):
    """Run the verb on a terminal, type `typed`, and return the text on the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "t5lite.generate", *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while part := os.read(ours, 4096):
            shown += part
    process.wait()
    errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    return shown.decode()


def test_on_a_terminal_an_answer_appears_as_it_is_made(language_model):
    shown = run_on_a_terminal(["--checkpoint", str(language_model), "--input", "the", "--max_new_tokens", "12"])
    (answer,) = open_answerer(language_model).answers([Request("the")], Options(Settings(max_new_tokens=12)))
    assert answer["output"].strip().splitlines()[0] in shown


def test_a_conversation_fills_blanks_and_ends(spans):
    typed = "the <extra_id_0> went\nthe sea\n\x04"
    shown = run_on_a_terminal(["--checkpoint", str(spans), "--interactive", "--max_new_tokens", "8"], typed)
    generator = open_answerer(spans)
    (answer,) = generator.answers([Request("the <extra_id_0> went")], Options(Settings(max_new_tokens=8)))
    assert fill_blanks("the <extra_id_0> went", answer["output"]).split("\n")[0] in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score"], "--score needs a target for 'x'"),
        (["--target", "y"], "--target has no effect without --score"),
        (["--num_beams=4", "--temperature=1"], "num_beams=4 searches .* temperature=1.0 draws"),
        (["--num_return=2"], "num_return=2: there is only one answer"),
        (["--num_beams=2", "--num_return=3"], "needs at least as many beams"),
        (["--num_beams=2", "--stop", "."], "--stop cannot be combined with --num_beams"),
        (["--stop", ""], "--stop: an empty text"),
        (["--suppress", "the whole sentence"], "--suppress: .* is [0-9]+ tokens"),
        (["--early_stopping", "perhaps"], "early_stopping='perhaps'"),
        (["--min_p", "2"], "must be from 0 to 1"),
        (["--min_new_tokens", "65"], "min_new_tokens=65 is above max_new_tokens=64"),
        (["--no_repeat_ngram_size=-1"], "must be from 0 to 1,024"),
        (["--forced_bos", "the whole sentence"], "--forced_bos: .* is [0-9]+ tokens"),
        (["--prefix", "word " * 200], "prefix of [0-9]+ tokens is longer than max_new_tokens=64"),
    ],
)
def test_mistakes_end_in_one_line(spans, arguments, message, capsys):
    error = failed(["--checkpoint", str(spans), "--input", "x", *arguments], capsys)
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: is not a JSON object"),
        ('{"other": 1}', "line 2: has no inputs or text"),
        ('{"inputs": ["x"]}', "line 2: column 'inputs' is a list"),
        ('{"inputs": null}', "line 2: column 'inputs' is null"),
        ('{"inputs": "x", "prefix": "word ' + "word " * 99 + '"}', "tokens is longer than max_new_tokens=4"),
        ("[" * 100_000, "line 2: is nested too deeply"),
        ("caf\udce9", "line 2: is not UTF-8 at byte 3"),
    ],
)
def test_a_wrong_line_is_named_and_the_others_are_answered(spans, line, message, tmp_path, capsys):
    file = tmp_path / "q.jsonl"
    file.write_bytes(f'{{"inputs": "x"}}\n{line}\n{{"inputs": "the", "id": 3}}\n'.encode(errors="surrogateescape"))
    command = ["--checkpoint", str(spans), "--input_file", str(file), "--max_new_tokens=4", "--json"]
    out, err = fails(command, capsys)
    first, last = map(json.loads, out.splitlines())
    assert (first["input"], last["input"], last["id"]) == ("x", "the", 3)
    assert message in err.splitlines()[0] and str(file) in err and "1 of 3 texts" in err.splitlines()[1]
    out, err = fails([*command, "--strict"], capsys)
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["x"]
    assert message in err and err.count("\n") == 1


def test_hosts_share_the_texts_and_host_0_has_all_answers_and_errors(monkeypatch):
    requests = [Request("x" * (i % 3), place=f"line {i}", fault="is wrong" if i % 5 == 0 else None) for i in range(40)]
    sent = {0: [], 1: []}

    def run(index):
        def to_primary(value):
            sent[index].append(json.loads(json.dumps(value)))
            return [] if index else [sent[0][-1], sent[1][len(sent[0]) - 1]]

        for name, function in (("count_hosts", lambda: 2), ("get_index", lambda: index), ("to_primary", to_primary)):
            monkeypatch.setattr(f"t5lite.run.answering.hosts.{name}", function)

        def prepare(request):
            if request.place == "line 7":
                raise UserError("is too long")
            return PreparedRequest(request, np.zeros(1, np.int32))

        function = lambda ready, places: [
            each.complete_answer({"output": place}) for each, place in zip(ready, places, strict=True)
        ]
        return list(answer_in_order(requests, 4, prepare, function, strict=False))

    assert run(1) == []
    for place, answer in enumerate(run(0)):
        expected = {7: "line 7: is too long"}.get(place, f"line {place}: is wrong" if place % 5 == 0 else None)
        assert answer.get("error") == expected and answer.get("output") == (None if expected else place)


def test_a_missing_target_is_named_and_the_others_are_scored(pairs, tmp_path, capsys):
    lines = [{"inputs": "x", "targets": "other"}, {"inputs": "y"}, {"inputs": "z", "targets": 3}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--checkpoint", str(pairs), "--input_file", str(tmp_path / "q.jsonl"), "--score", "--json"]
    out, err = fails(command, capsys)
    assert [json.loads(line)["target"] for line in out.splitlines()] == ["other", "3"]
    assert "line 2: --score needs a target for 'y'" in err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_are_read_as_training_reads_them(spans, end, tmp_path, capsys, monkeypatch):
    """A byte-order mark, blank lines, numbers, .gz, and all of this from standard input."""
    lines = ['{"inputs": "the sea"}', "", "   ", '{"inputs": 7, "id": 3}', '{"text": "half \\ud83d"}']
    content = ("\ufeff" + end.join(lines) + end).encode()
    (tmp_path / "q.jsonl").write_bytes(content)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(content))
    command = ["--checkpoint", str(spans), "--max_new_tokens=2", "--json"]
    expected = ["the sea", "7", "half \ufffd"]
    for name in ("q.jsonl", "q.jsonl.gz"):
        generate.main([*command, "--input_file", str(tmp_path / name)])
        assert [answer["input"] for answer in said(capsys)] == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    generate.main([*command, "--jsonl"])
    assert [answer["input"] for answer in said(capsys)] == expected
    (tmp_path / "q.txt").write_bytes(f"\ufeffthe sea{end}{end}old man{end}".encode())
    generate.main([*command, "--input_file", str(tmp_path / "q.txt")])
    captured = capsys.readouterr()
    assert [json.loads(line)["input"] for line in captured.out.splitlines()] == ["the sea", "old man"]
    assert "blank lines are skipped and have no answer: 1 (2)" in captured.err


def test_a_text_that_was_cut_is_named(pairs, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("the sea\n" + "the sea " * 60 + "\n")
    generate.main(["--checkpoint", str(pairs), "--input_file", str(tmp_path / "q.txt"), "--json"])
    captured = capsys.readouterr()
    short, long = map(json.loads, captured.out.splitlines())
    assert "cut" not in short and long["cut"]["read"] == 32 < long["cut"]["tokens"]
    (warning,) = captured.err.splitlines()
    assert f"{tmp_path / 'q.txt'}, line 2: has {long['cut']['tokens']} tokens, but the network reads 32" in warning


@pytest.mark.parametrize("more", [["--temperature=1", "--num_return=2"], ["--num_beams=3"], ["--stop", "."]])
def test_a_text_too_long_for_the_positions_does_not_stop_other_texts(short_positions, more, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("the sea\n" + "the sea went " * 30 + "\nold\n")
    command = ["--checkpoint", str(short_positions), "--input_file", str(tmp_path / "q.txt"), "--max_new_tokens=9"]
    out, err = fails([*command, "--json", *more], capsys)
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["the sea", "old"]
    assert "line 2: the text has" in err and "has 40 positions" in err


def test_a_long_target_leaves_the_texts_beside_it_alone(short_positions, tmp_path, capsys):
    lines = [{"inputs": "the sea went old " * 2, "targets": "x"}, {"inputs": "a", "targets": "the sea went " * 30}]
    lines += [{"inputs": "a", "targets": "the sea went old"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--checkpoint", str(short_positions), "--score", "--json", "--input_file", str(tmp_path / "q.jsonl")]
    out, err = fails(command, capsys)
    together = [json.loads(line) for line in out.splitlines()]
    assert [answer["target"] for answer in together] == [lines[0]["targets"], lines[2]["targets"]]
    assert "line 2:" in err
    for answer, line in zip(together, (lines[0], lines[2]), strict=True):
        (alone,) = open_answerer(short_positions).scores([Request(line["inputs"], target=line["targets"])])
        assert alone["logprob"] == pytest.approx(answer["logprob"], abs=1e-4)


def test_a_text_longer_than_the_positions_is_refused(short_positions, capsys):
    command = ["--checkpoint", str(short_positions), "--input"]
    generate.main([*command, "the sea", "--max_new_tokens", "20"])
    capsys.readouterr()
    assert "has 40 positions" in failed([*command, "the sea went " * 30, "--max_new_tokens", "4"], capsys)
    assert "20 are to follow" not in failed([*command, "the sea went " * 30, "--max_new_tokens", "4"], capsys)
    assert "are to follow" in failed([*command, "the sea", "--max_new_tokens", "60"], capsys)


def test_a_model_over_several_devices_answers_as_on_one(spans):
    request = [Request("the <extra_id_0> went"), Request("the old man said.")]
    options = Options(Settings(max_new_tokens=8, num_beams=2))
    one, two = (list(open_answerer(spans, tensor=n).answers(request, options)) for n in (1, 2))
    for ours, theirs in zip(one, two, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        np.testing.assert_allclose(ours["token_logprobs"], theirs["token_logprobs"], atol=1e-4)
