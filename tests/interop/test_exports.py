"""A run is exported as a folder for transformers: texts have the same ids there, and ids have the same logits."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite import convert
from t5lite.config import read_config
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.decoding.settings import Settings
from t5lite.objectives.batch import Batch
from t5lite.run.answers import Options, Request, open_answerer
from t5lite.train import train
from tests.interop import reference
from tests.interop.own_outputs import outputs_of
from tests.interop.test_parity import assert_same, live
from tests.small import write_texts

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
ARGUMENTS = {"encoder_decoder": "", "decoder": ":objective=causal_lm"}
TEXTS = ["the sea", "  a white  whale\nwent", "the <extra_id_0> said▁the captain <extra_id_1>", "é"]


@pytest.fixture(scope="module", params=ARGUMENTS)
def exported(request, tmp_path_factory):
    """(workdir, exported folder) of configs/tiny.py with an even smaller network."""
    root = tmp_path_factory.mktemp(request.param)
    config = read_config(f"{TINY}{ARGUMENTS[request.param]}")
    config.data.train.source = write_texts(root / "texts")
    config.objective.inputs_length = 64
    config.tokenizer.vocab_size = 290
    config.model.update({"d_model": 36, "d_ff": 40, "num_heads": 3, "head_dim": 10})
    layers = {name: min(config.model[name], 1) for name in ("num_encoder_layers", "num_decoder_layers")}
    config.model.update(layers)  # each layer takes seconds to compile
    config.mesh.data = 1
    config.budget.steps = 4
    config.eval.rows = 8
    train(config, root / "run")
    convert.main(["--from", str(root / "run"), "--to", f"hf:{root / 'released'}"])
    return root / "run", root / "released"


def test_what_was_exported_answers_here_like_the_run(exported):
    places, options = [str(exported[0]), f"hf:{exported[1]}"], Options(Settings(max_new_tokens=6))
    assert len({load_tokenizer(place, 0, ()).sha256 for place in places}) == 1
    actual, expected = (list(open_answerer(place).answers(list(map(Request, TEXTS)), options)) for place in places)
    for one, other in zip(actual, expected, strict=True):
        assert one["tokens"] == other["tokens"] and one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)


@live
def test_transformers_loads_it_and_computes_the_same(exported):
    import torch
    import transformers

    workdir, folder = exported
    generator = open_answerer(workdir)
    config_json = json.loads((folder / "config.json").read_text())
    model, info = reference.load_model(folder, config_json)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    alone, start = config_json["model_type"] == "llama", [generator.tokenizer.vocabulary.start]
    for text in TEXTS:
        ids = generator.encode(text)
        assert tokenizer(text)["input_ids"] == [*(start if alone else []), *ids]
        decoded = np.array([[*start, *(ids if alone else [7, 8, 9, 389])]])
        targets, inputs = jnp.zeros(decoded.shape, jnp.int32), None if alone else ids[None]
        actual = Batch(targets, targets, inputs=inputs, decoder_inputs=jnp.asarray(decoded))
        tensors = {"decoder_input_ids": decoded, "input_ids": inputs}
        tensors = {"input_ids": decoded} if alone else tensors
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(values.astype(np.int64)) for name, values in tensors.items()})
        assert_same(outputs_of(generator.model, generator.params, actual), {"logits": expected.logits.numpy()})


@live
@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generates_what_is_generated_here(exported, beams):
    """Transformers uses only the exported files. Texts for the encoder-decoder have a blank.

    Without a blank, t5lite generates no sentinels, and no exported file can express this rule.
    """
    import torch
    import transformers

    workdir, folder = exported
    generator, config_json = open_answerer(workdir), json.loads((folder / "config.json").read_text())
    model, tokenizer = reference.load_model(folder, config_json)[0], transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text if generator.objective.architecture == "decoder" else f"{text} <extra_id_0>" for text in TEXTS]
    options = Options(Settings(max_new_tokens=8, num_beams=beams))
    for answer in generator.answers(list(map(Request, texts)), options):
        tensors = tokenizer(answer["input"], return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**tensors, max_new_tokens=8, do_sample=False, num_beams=beams)[0].tolist()
        new = out[1:] if model.config.is_encoder_decoder else out[tensors["input_ids"].shape[1] :]
        assert new == answer["tokens"]
        end = [] if new[-1:] != [tokenizer.eos_token_id] else new[-1:]
        assert tokenizer.decode(new[: len(new) - len(end)], skip_special_tokens=False) == answer["output"]
