"""The model for lm-evaluation-harness: its three kinds of requests, asked through the plain interface of a request."""

import importlib.util
import types

import numpy as np
import pytest

from t5lite.decoding.settings import Settings
from t5lite.run import lm_eval
from t5lite.run.answers import Options, Request
from t5lite.run.lm_eval import HarnessModel, Pair, cut_text, read_options
from t5lite.system.errors import UserError
from t5lite.train import train
from tests.small import small_config, write_pairs, write_texts

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


def ask(*arguments):
    """Return requests with these `args`, as the harness makes them."""
    return [types.SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kinds = {"language_model": ("causal_lm", "decoder"), "pairs": ("supervised", "encoder_decoder"),
             "pairs_decoder": ("supervised", "decoder")}  # fmt: skip
    made = {}
    for name, kind in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        source = write_pairs(folder / "a.jsonl") if kind[0] == "supervised" else write_texts(folder / "texts")
        train(small_config(source, *kind), folder / "run")
        made[name] = HarnessModel(str(folder / "run"), batch_size=2)
    return made


PAIRS = [("the white whale", " went to sea"), ("the", " old man"), ("", "the sea"), ("a ship ", "sank"), ("cold", " x")]


def test_a_continuation_scores_as_generate_scores_it(models):
    """A language model: the tokens of the continuation are those of the whole text."""
    model = models["language_model"]
    generator = model._generator
    for (context, continuation), (logprob, is_greedy) in zip(PAIRS, model.loglikelihood(ask(*PAIRS)), strict=True):
        (expected,) = generator.scores(
            [Request(context.rstrip(), target=context[len(context.rstrip()) :] + continuation)]
        )
        if context:  # the first token of a text has no space in front
            assert logprob == pytest.approx(expected["logprob"], abs=1e-3)
        (greedy,) = generator.answers([Request(context.rstrip())], Options(Settings(len(expected["tokens"]))))
        assert is_greedy == (greedy["tokens"] == expected["tokens"]) or not context


@pytest.mark.parametrize("name", ["pairs", "pairs_decoder"])
def test_an_answer_scores_without_eos_and_without_the_space_in_front(models, name):
    model = models[name]
    for (context, continuation), (logprob, _) in zip(PAIRS, model.loglikelihood(ask(*PAIRS)), strict=True):
        (expected,) = model._generator.scores([Request(context.rstrip(), target=continuation.lstrip())])
        assert logprob == pytest.approx(sum(expected["token_logprobs"][:-1]), abs=1e-3)


def test_what_is_generated_is_scored_as_it_was_then(models):
    for name in ("language_model", "pairs"):
        model = models[name]
        generator = model._generator
        (answer,) = generator.answers([Request("the sea")], Options(Settings(6)))
        assert model.generate_until(ask(("the sea", {"max_gen_toks": 6}))) == [answer["output"]]
        context, tokens = generator.encode("the sea").tolist(), answer["tokens"]
        ((logprobs, _),) = model._score([Pair(context, tokens)])
        assert logprobs == pytest.approx(answer["token_logprobs"], abs=1e-4)


def test_answers_end_before_the_texts_in_until(models):
    model = models["language_model"]
    (free,) = model.generate_until(ask(("the", {"max_gen_toks": 30})))
    stop = free[6:9]
    fields = ({"until": [stop, ""]}, {"until": stop, "do_sample": False, "temperature": 0.7}, {})
    requests = ask(*(("the", {"max_gen_toks": 30, **each}) for each in fields))
    short, same, again = model.generate_until(requests)
    assert short == same == free[: free.index(stop)] and again == free
    (beams,) = model.generate_until(ask(("the", {"max_gen_toks": 30, "num_beams": 2, "until": [" "]})))
    assert " " not in beams


def test_a_long_text_is_scored_in_windows_and_each_token_once(models):
    model = models["language_model"]
    text = "the white whale went to sea. " * 12
    ids = model._generator.tokenizer.encode(text).tolist()
    for limit in (4, 7, 1000):
        short = HarnessModel.__new__(HarnessModel)
        short.__dict__ |= vars(model) | {"max_length": limit}
        windows = short._cut_windows(text)
        assert [token for window in windows for token in window.continuation] == ids
        assert all(1 + len(each.context) + len(each.continuation) - 1 <= limit for each in windows)
        assert all(len(each.context) == (index > 0) for index, each in enumerate(windows[:-1]))
        place = 0
        for window in windows:
            assert ids[place - len(window.context) : place] == window.context
            place += len(window.continuation)
        (total,) = short.loglikelihood_rolling(ask((text,)))
        parts = [model._score([window])[0][0].sum() for window in windows]
        assert total == pytest.approx(sum(parts), rel=1e-4)
    (whole,) = short.loglikelihood_rolling(ask((text,)))
    assert whole == pytest.approx(short.loglikelihood(ask(("", text)))[0][0], rel=1e-4)
    assert model.loglikelihood_rolling(ask(("",))) == [0.0]


def test_the_beginning_of_a_long_context_is_lost_and_said_once(models, capsys):
    for name, model in models.items():
        short = HarnessModel.__new__(HarnessModel)
        short.__dict__ |= vars(model) | {"max_length": 12, "_lost": False}
        long = "the sea " * 30 + "a white whale"
        found = short.loglikelihood(ask((long, " went"), (long, " old")))
        assert capsys.readouterr().err.count("the beginning of long contexts is cut off") == 1, name
        (kept,) = short.generate_until(ask((long, {"max_gen_toks": 4})))
        pair = short._encode_pair(long, " went")
        decode = model._generator.tokenizer.decode
        assert long.endswith(decode(pair.context).strip()) and len(pair.context) <= 12
        assert len(found) == 2 and isinstance(kept, str)


def test_fields_of_a_task(models):
    assert read_options({}) == Options(Settings(256))
    assert read_options({"until": "\n", "do_sample": True, "top_p": 0.9}) == Options(
        Settings(256, temperature=1.0, top_p=0.9), ("\n",)
    )
    with pytest.raises(UserError, match="typical_p is unknown"):
        read_options({"typical_p": 0.5})
    assert cut_text("one two", ["wo", "t"]) == "one " and cut_text("one", []) == "one"


def test_mistakes_are_named(models, tmp_path):
    with pytest.raises(UserError, match="batch_size='auto'"):
        HarnessModel("x", batch_size="auto")
    train(small_config(write_pairs(tmp_path / "a.jsonl"), "supervised", "encoder"), tmp_path / "run")
    with pytest.raises(UserError, match="is an encoder"):
        HarnessModel(str(tmp_path / "run"))
    with pytest.raises(UserError, match="do not fit in max_length=32"):
        models["language_model"].generate_until(ask(("the", {"max_gen_toks": 300})))


def test_the_cache_of_the_harness_gets_every_result(models):
    seen = []
    model = HarnessModel.__new__(HarnessModel)
    hook = types.SimpleNamespace(add_partial=lambda *fields: seen.append(fields))
    model.__dict__ |= vars(models["language_model"]) | {"cache_hook": hook}
    results = model.loglikelihood(ask(*PAIRS[:2]))
    assert seen == [("loglikelihood", pair, result) for pair, result in zip(PAIRS, results, strict=False)]


@pytest.mark.skipif(HAS_HARNESS, reason="lm_eval is installed")
def test_without_the_harness_one_line_says_what_to_install(capsys):
    with pytest.raises(SystemExit) as stop:
        lm_eval.main()
    assert stop.value.code == 2 and "pip install lm_eval" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval not installed: no live comparison")
def test_the_harness_evaluates_a_checkpoint(tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    source = write_texts(tmp_path / "texts")
    train(small_config(source, "causal_lm", "decoder"), tmp_path / "run")
    lm_eval.make_lm_class()
    model = get_model("t5lite").create_from_arg_string(
        f"checkpoint={tmp_path / 'run'}", {"batch_size": 2, "device": "cuda:0"}
    )
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    ours = HarnessModel(str(tmp_path / "run"), batch_size=3).loglikelihood(ask(*PAIRS))
    for (logprob, is_greedy), expected in zip(model.loglikelihood(requests), ours, strict=True):
        assert (np.float32(logprob), is_greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])
