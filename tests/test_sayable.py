"""What training puts in a target, generation can say: with every tokenizer; and a pair that was learned comes back.

That it holds for every objective is in tests/objectives/test_roles.py.
"""

import json
import types

import numpy as np
import pytest

from t5lite import convert, evaluate, generate
from t5lite.data.packing import pack
from t5lite.data.rows import PackedPairs
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.decoding.conventions import make_conventions
from t5lite.objectives.catalogue import OBJECTIVES, make_objective
from t5lite.system.vocabulary import Rules
from t5lite.train import train
from tests.data import released
from tests.data.tokenizers.test_tokenizer import OWN
from tests.interop.test_parity import live
from tests.objectives.made import FIELDS, SPECIALS
from tests.objectives.test_every_objective import CASES
from tests.objectives.test_roles import SHIFTED, TEXT
from tests.sayable import trained, unsayable
from tests.small import small_config

ALL = [
    *CASES,
    *(
        (name, architecture, {"targets_length": 32})
        for name in ("supervised", "chat")
        for architecture in ("encoder_decoder", "decoder")
    ),
]
FAMILIES = {
    "own": None,
    **{name: getattr(released, name) for name in ("t5", "gpt2", "neox", "bart", "bert", "llama")},
}


def test_every_objective_that_generates_is_here():
    heads = {name for name, kind in OBJECTIVES.items() if set(kind.architectures) == {"encoder"}}
    assert {name for name, _, _ in ALL} | heads | {"ul2r"} == set(OBJECTIVES)


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_targets_of_packed_pairs_can_be_generated(architecture):
    objective = make_objective(FIELDS | {"name": "supervised", "targets_length": 32}, architecture, SHIFTED)
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(3, TEXT, n), SHIFTED.eos) for n in rng.integers(0, 40, 40)]
    lengths = np.array([len(document) for document in documents]).reshape(-1, 2) + (objective.bos is not None)
    plan = pack(lengths, np.arange(20), objective.inputs_length, objective.targets_length)
    rows = PackedPairs(types.SimpleNamespace(document=documents.__getitem__), plan, objective.bos)
    fetched = rows.fetch(np.arange(len(rows)))
    assert fetched["targets_segment_ids"].max() > 1
    for targets, segments in zip(fetched["targets"], fetched["targets_segment_ids"], strict=True):
        assert not unsayable(objective, SHIFTED, targets, segments, segments > 0)


def test_a_run_without_rules_begins_with_what_its_targets_begin_with():
    """A workdir that an older t5lite left."""
    objective = make_objective(FIELDS | {"name": "supervised", "targets_length": 32}, "encoder_decoder", SHIFTED)
    known = make_conventions(objective, SHIFTED, True, None)
    assert (known.rules.first, known.front, known.rules.stops) == (SHIFTED.bos, (SHIFTED.bos,), (SHIFTED.eos,))
    free = make_conventions(objective, SHIFTED, True, Rules())
    assert free.rules.first is None and free.front == (SHIFTED.bos,) and free.allowed[SHIFTED.bos]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_text_of_a_tokenizer_can_be_generated(family, tmp_path):
    make = FAMILIES[family]
    tokenizer = OWN if make is None else load_tokenizer(f"hf:{make(tmp_path)}", 100, SPECIALS)
    if make is None:
        tokenizer = type(OWN)(OWN.model, 100, SPECIALS)
    vocab = tokenizer.vocabulary
    ids = np.concatenate([*tokenizer.encode_many(released.TEXT.split("\n")), tokenizer.encode("!?")])
    text = set(ids.tolist()) - {vocab.unknown}
    text |= set(np.flatnonzero(~vocab.table.is_special).tolist()) - {vocab.unknown}
    for name, architecture, settings in ALL:
        objective = make_objective(FIELDS | {"name": name, "inputs_length": 48, **settings}, architecture, vocab)
        known = trained(objective, vocab, tokenizer.rules or Rules())
        sayable = set(np.flatnonzero(known.allowed).tolist())
        assert text <= sayable and vocab.eos in sayable and not text & set(known.rules.stops), (name, architecture)
        assert known.rules.first == objective.bos
        if known.allowed[vocab.size - 1]:
            assert objective.targets_hold_specials


PAIR = {"inputs": "oil seed rain", "targets": "the rain! is near, 42 times."}
RUNS = {"own": "decoder", "bart": "encoder_decoder", "gpt2": "decoder"}


# The quick test of a decoder with a tokenizer of its own that is exported and comes back is in interop/test_exports.py.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "own")) for name in RUNS]
)
def taught(request, tmp_path_factory):
    """(name, workdir) of a run that has learned one pair by heart."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "pair.jsonl").write_text(json.dumps(PAIR) + "\n")
    config = small_config(f"files:{folder}/pair.jsonl", "supervised", RUNS[request.param])
    if request.param == "own":
        OWN.save(folder / "own" / "tokenizer")
        config.tokenizer.path = str(folder / "own")
    else:
        config.tokenizer.path = f"hf:{getattr(released, request.param)(folder / 'released')}"
    config.data.validation.source = config.data.train.source
    config.objective.inputs_length, config.objective.targets_length = 48, 48
    config.batch_size, config.budget.steps, config.schedule.rate, config.model.dropout = 4, 80, 1e-2, 0.0
    config.checkpoint.every_steps = config.log_every_steps = 80
    train(config, folder / "run")
    return request.param, folder / "run"


def answers_of(place, capsys, *more):
    generate.main(["--checkpoint", str(place), "--input", PAIR["inputs"], "--json", *more])
    return json.loads(capsys.readouterr().out)


def test_a_pair_that_was_learned_comes_back(taught, tmp_path, capsys):
    """From the verbs, and after the run has become a release."""
    name, workdir = taught
    metrics = json.loads((workdir / "result.json").read_text())["metrics"]["validation"]
    assert metrics["loss"] < 0.1 and metrics["exact_match"] == 1
    capsys.readouterr()
    answer = answers_of(workdir, capsys)
    assert answer["output"] == PAIR["targets"] and answer["logprob"] > -3
    convert.main(["--from", str(workdir), "--to", f"hf:{tmp_path / 'released'}"])
    capsys.readouterr()
    assert answers_of(f"hf:{tmp_path / 'released'}", capsys)["tokens"] == answer["tokens"]
    if name != "bart":
        return
    evaluate.main(["--checkpoint", str(workdir), "--json", "--examples=1"])
    assert json.loads(capsys.readouterr().out)["metrics"]["validation"]["exact_match"] == 1
    for more in (["--num_beams=3"], ["--prefix", "the rain!"]):
        assert answers_of(workdir, capsys, *more)["output"] == PAIR["targets"], more
    scored = answers_of(workdir, capsys, "--score", "--target", PAIR["targets"])
    assert scored["tokens"] == answer["tokens"]
    assert scored["logprob"] == pytest.approx(answer["logprob"], abs=1e-3)
    convert.main(["--from", f"hf:{tmp_path / 'released'}", "--to", str(tmp_path / "back")])
    capsys.readouterr()
    assert answers_of(tmp_path / "back", capsys)["tokens"] == answer["tokens"]


@live
def test_transformers_says_the_learned_pair_too(taught, tmp_path):
    """By the exported files alone."""
    import transformers

    _, workdir = taught
    convert.main(["--from", str(workdir), "--to", f"hf:{tmp_path / 'released'}"])
    said = json.loads((tmp_path / "released" / "config.json").read_text())
    is_pair = said.get("is_encoder_decoder", False)
    kind = transformers.AutoModelForSeq2SeqLM if is_pair else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(tmp_path / "released").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "released")
    given = tokenizer(PAIR["inputs"], return_tensors="pt")
    for settings in ({}, {"num_beams": 3}):
        out = model.generate(**given, max_new_tokens=48, do_sample=False, **settings)[0].tolist()
        new = out[1:] if is_pair else out[given["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == PAIR["targets"]
