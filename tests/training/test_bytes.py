"""Bits per byte counts the bytes of the text itself, whatever a tokenizer puts in front of it or loses of it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.data.build import build_text
from t5lite.data.rows import Windows
from t5lite.data.store import Span, TokenStore
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.objectives.catalogue import make_objective
from t5lite.objectives.objective import example_keys, make_batch
from t5lite.run.evaluation import Evaluator
from t5lite.run.experiment import open_experiment
from t5lite.tasks.text import byte_sums
from t5lite.training.trainer import make_trainer
from tests.data import released
from tests.small import config_with, sentence, small_config

RNG = np.random.default_rng(0)
TEXTS = [f"{sentence(RNG, 1 + i % 9)} é\n" for i in range(60)] + [" a space in front", "\na line break", "🙂", "▁"]
OWN = train_tokenizer(sample_chunks(TEXTS, 10**6), 290)
FAMILIES = {
    "gpt2": released.gpt2,
    "gpt2 with a space in front": lambda folder: released.gpt2(folder, add_prefix_space=True),
    "bart": released.bart,
    "llama": released.llama,
    "llama by metaspace": lambda folder: released.llama(folder, metaspace=True),
}
FEW = range(5, 40)  # tokens of a window


def in_windows(texts, tokenizer):
    """(texts and some more, length): their tokens, with EOS, are whole windows of `length`."""
    while True:
        tokens = sum(len(ids) + 1 for ids in tokenizer.encode_many(texts))
        for length in FEW:
            if tokens % length == 0:
                return texts, length
        texts = [*texts, "e"]


def opened(folder, tokenizer, texts):
    build_text(folder, [(text, True) for text in texts], tokenizer, False, lambda _: None)
    return TokenStore(folder / "train")


def bytes_of(tokenizer, store, objective_name, length):
    """(bytes of the targets of all windows, their batch, their source)."""
    vocabulary = tokenizer.vocabulary
    fields = small_config("", objective_name, "decoder").objective
    fields.inputs_length = length
    made = make_objective(fields, "decoder", vocabulary)
    source = Windows(Span.cover(store), made.window, made.with_eos, made.segments, begins=True)
    rows = source.fetch(np.arange(len(source)))
    keys = example_keys(jax.random.key(0), jnp.int32(0), len(source))
    batch = make_batch(made, keys, rows, vocabulary.table)
    return int(byte_sums(made, keys, rows, batch.weights, vocabulary.table)["bytes"]), batch, source


@pytest.mark.parametrize("name", ["own", *FAMILIES])
def test_the_windows_of_all_documents_hold_the_bytes_of_their_text(tmp_path, name):
    tokenizer = OWN if name == "own" else load_tokenizer(f"hf:{FAMILIES[name](tmp_path / 'released')}", 20, ())
    known = [text for text in TEXTS if text != "▁" or "llama" not in name]  # to Llama's that sign is a space
    texts, length = in_windows(known, tokenizer)
    store = opened(tmp_path, tokenizer, texts)
    counted, batch, source = bytes_of(tokenizer, store, "causal_lm", length)
    assert int(batch.weights.sum()) == store.num_tokens and source.byte_scale == 1
    assert counted == store.card["bytes_of_text"] == sum(len(text.encode()) for text in texts)


def test_of_a_prefix_lm_the_continuations_count(tmp_path):
    """Each document is one window, so that a continuation is what its text ends in."""
    texts = [f"{word} e" for word in ("ab", "é", "▁", "🙂", "\n", " ") for _ in range(9)]
    length = len(OWN.encode("é e"))
    same = [text for text in texts if len(OWN.encode(text)) == length]
    assert len(set(same)) > 1
    counted, batch, _ = bytes_of(OWN, opened(tmp_path, OWN, same), "prefix_lm", length)
    kept = length - np.asarray(batch.weights).sum(axis=1).astype(int)
    prefixes = [OWN.decode(OWN.encode(text)[:count]) for text, count in zip(same, kept, strict=True)]
    whole, left = (sum(len(text.encode()) for text in of) for of in (same, prefixes))
    assert counted == whole - left and 0 < counted < whole


@pytest.mark.parametrize("name", ["own", "bert"])
def test_the_metric_is_bits_over_bytes_of_the_text(tmp_path, name):
    config = small_config("", "causal_lm", "decoder")
    if name == "own":
        config.tokenizer.path = config_with(OWN, tmp_path / "own").tokenizer.path
    else:  # which loses accents, spaces and signs
        config.tokenizer.path = f"hf:{released.bert(tmp_path / 'released')}"
    tokenizer = OWN if name == "own" else load_tokenizer(config.tokenizer.path, 20, ())
    texts, config.objective.inputs_length = in_windows(TEXTS, tokenizer)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config.data.train.source = config.data.validation.source = f"files:{tmp_path}/a.jsonl"
    config.eval.rows = 1000
    experiment = open_experiment(config)
    trainer = make_trainer(config, experiment.model, experiment.objective, experiment.vocabulary.table, 1)
    metrics = Evaluator(experiment, trainer.mesh).evaluate_in_training(trainer.init().params)["validation"]
    tokens = experiment.dataset.heldout["validation"].store.num_tokens
    num_bytes = sum(len(text.encode()) for text in texts)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] * tokens / math.log(2) / num_bytes, rel=1e-5)
