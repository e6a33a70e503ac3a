"""Released weights and their exports follow the rules in generation_config.json, as in transformers."""

import json

import numpy as np
import pytest

from t5lite import convert
from t5lite.decoding.settings import Settings
from t5lite.run.answers import Options, Request, open_answerer
from tests.interop import reference
from tests.interop.places import make_place
from tests.interop.test_parity import live

TEXTS = ["to the oil rain", "a", "seed , rain . near the"]
SETTINGS = {
    "greedy": (Settings(7), {}),
    "beams": (Settings(7, num_beams=3), {"num_beams": 3}),
    "long beams": (Settings(9, num_beams=4, length_penalty=2.0), {"num_beams": 4, "length_penalty": 2.0}),
}


def rules_for(name, place):
    """Return a generation_config.json with every rule.

    It suppresses specials, because t5lite never generates them without training. It suppresses sentinels, because
    t5lite generates them only if the text has a blank.
    """
    generator = open_answerer(f"hf:{place}")
    vocabulary, rows = generator.tokenizer.vocabulary, generator.model.config.vocab_size
    text = np.flatnonzero(generator.conventions.allowed)
    text = [int(token) for token in text if token < vocabulary.pieces and not vocabulary.table.is_special[token]]
    config_json = {
        "eos_token_id": [vocabulary.eos, *text[20:60]],
        "forced_eos_token_id": vocabulary.eos,
        "begin_suppress_tokens": text[100:200],
        "bad_words_ids": [[token] for token in text[60:70]],
        "suppress_tokens": sorted({*range(rows)} - {*text, vocabulary.eos, *([0] if name == "bart" else [])}),
        "pad_token_id": 1,
        "no_repeat_ngram_size": 2,
    }
    # The decoder's start counts in min_length, and a decoder's prompt would too.
    config_json |= {"min_new_tokens": 3} if name in ("gpt2", "llama") else {"min_length": 4}
    if name == "bart":
        config_json |= {"forced_bos_token_id": 0, "decoder_start_token_id": 2, "bos_token_id": 0}
    else:
        config_json |= (
            {"decoder_start_token_id": vocabulary.start} if name == "t5" else {"bos_token_id": vocabulary.start}
        )
    return config_json


SLOW = {"t5", "gpt2"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ("bart", "t5", "gpt2", "llama")],
)
def places(request, tmp_path_factory):
    """(release with rules, workdir converted from the release, release converted from the workdir)."""
    root = tmp_path_factory.mktemp(request.param)
    place = make_place(root / "release", request.param)
    (place / "generation_config.json").write_text(json.dumps(rules_for(request.param, place)))
    convert.main(["--from", f"hf:{place}", "--to", str(root / "run")])
    convert.main(["--from", str(root / "run"), "--to", f"hf:{root / 'back'}", "--dtype", "bfloat16"])
    return place, root / "run", root / "back"


def answers(place, settings):
    return [each["tokens"] for each in open_answerer(place).answers(list(map(Request, TEXTS)), Options(settings))]


def test_a_workdir_and_an_export_keep_the_rules(places):
    place, workdir, back = places
    expected = answers(f"hf:{place}", Settings(7))
    assert answers(workdir, Settings(7)) == answers(f"hf:{back}", Settings(7)) == expected
    stops = open_answerer(f"hf:{place}").conventions.rules.stops
    assert all(not set(tokens[:-1]) & set(stops) and tokens[-1] in stops for tokens in expected)
    assert all(len(tokens) >= 4 for tokens in expected)
    free = answers(workdir, Settings(7, min_new_tokens=0, no_repeat_ngram_size=0))
    assert free == answers(f"hf:{place}", Settings(7, min_new_tokens=0, no_repeat_ngram_size=0)) != expected


@live
@pytest.mark.parametrize("case", SETTINGS)
def test_transformers_generates_the_same(places, case):
    import torch

    settings, options = SETTINGS[case]
    for place in (places[0], places[2]):
        config_json = json.loads((place / "config.json").read_text())
        model, generator = reference.load_model(place, config_json)[0], open_answerer(f"hf:{place}")
        start = [generator.tokenizer.vocabulary.start] if generator.tokenizer.begins_with_start else []
        for text, tokens in zip(TEXTS, answers(f"hf:{place}", settings), strict=True):
            ids = generator.encode(text).tolist()
            is_pair = model.config.is_encoder_decoder
            tensors = torch.tensor([ids if is_pair else [*start, *ids]])
            with torch.no_grad():
                out = model.generate(
                    input_ids=tensors, attention_mask=torch.ones_like(tensors), do_sample=False,
                    max_new_tokens=settings.max_new_tokens, use_cache=False, **options,
                )[0].tolist()  # fmt: skip
            assert (out[1:] if is_pair else out[tensors.shape[1] :]) == tokens, text
