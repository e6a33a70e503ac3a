"""Objectives take the ids of EOS, BOS and a decoder's start token from the vocabulary, and use no others."""

import dataclasses

import jax
import numpy as np
import pytest

from t5lite.objectives.catalogue import OBJECTIVES
from t5lite.objectives.objective import make_batch
from t5lite.system.vocabulary import CLS, EOS, PAD, SEP
from t5lite.tasks.table import make_objective
from tests.objectives.made import FIELDS, SPECIALS, build, examples, vocabulary, windows
from tests.objectives.test_every_objective import CASES
from tests.sayable import unsayable

TEXT = 900  # ids from 3 up to this are text
NEW_BOS, NEW_EOS, NEW_START = 900, 901, 902
OLD = (0, 1, 2)


def _make_vocabulary():
    made = vocabulary(903, 100, (*SPECIALS, CLS, SEP))
    is_special = made.table.is_special.copy()
    is_special[[*OLD, NEW_BOS, NEW_EOS, NEW_START]] = True
    return dataclasses.replace(made, table=dataclasses.replace(made.table, is_special=is_special))


USUAL = _make_vocabulary()
SHIFTED = dataclasses.replace(USUAL, eos=NEW_EOS, start=NEW_START, bos=NEW_BOS, unknown=899)
ALL = [*CASES, *((name, "encoder", {}) for name in ("mlm", "mlm_nsp", "mlm_sop")), ("ul2r", "encoder_decoder", {})]
PAIRS = {
    "inputs": np.array([[5, 6, NEW_EOS, 8, NEW_EOS, 0]]),
    "inputs_segment_ids": np.array([[1, 1, 1, 2, 2, 0]]),
    "targets": np.array([[7, NEW_EOS, 9, NEW_EOS, 0]]),
    "targets_segment_ids": np.array([[1, 1, 2, 2, 0]]),
}


def check_decoder_inputs(batch):
    """Check that decoder inputs are `start` at the start of each segment, else the target before, and 0 on padding."""
    ids = np.ones(batch.targets.shape, int) if batch.targets_segment_ids is None else batch.targets_segment_ids
    for place, segment in enumerate(ids):
        before = batch.targets[place - 1] if place and ids[place - 1] == segment else NEW_START
        assert batch.decoder_inputs[place] == (before if segment else PAD)


def test_all_objectives_are_here():
    assert {name for name, _, _ in ALL} | {"supervised", "tagging", "chat"} == set(OBJECTIVES)


# On a decoder and an encoder-decoder, an objective differs only in the layout. UL2 is a mixture like the two others.
AGAIN = [(name, on) for name, on, _ in ALL if on == "decoder" and (name, "encoder_decoder", {}) in ALL]
AGAIN += [("ul2r", "encoder_decoder"), ("mixture", "encoder_decoder"), ("mixture", "decoder")]
CASES_OF_ALL = [
    pytest.param(name, on, settings, marks=[pytest.mark.slow] * ((name, on) in AGAIN), id=f"{name}-{on}")
    for name, on, settings in ALL
]


@pytest.mark.parametrize(("name", "architecture", "settings"), CASES_OF_ALL)
def test_other_roles_change_these_ids_alone(name, architecture, settings):
    """Only these ids change: text and noise are the same. With BOS, both sides are one token longer."""
    front = [NEW_BOS] if architecture == "encoder_decoder" else []
    usual = build(name, architecture, USUAL, 48, **settings)
    shifted = build(name, architecture, SHIFTED, 48 + len(front), **settings)
    assert shifted.window == usual.window
    assert shifted.lengths == tuple(length and length + len(front) for length in usual.lengths)
    tokens = windows(usual, 8, vocab=vocabulary(TEXT - 1))  # without the unknown token, which is never generated
    for expected, seen in zip(examples(usual, tokens, 3, USUAL), examples(shifted, tokens, 3, SHIFTED), strict=True):
        for side, found in ((expected.inputs, seen.inputs), (expected.targets, seen.targets)):
            assert found == ([*front, *(NEW_EOS if token == EOS else token for token in side)] if side else [])
            assert not set(OLD) & set(found)
        if architecture != "encoder":
            check_decoder_inputs(seen.batch)
            made = seen.example
            assert not unsayable(shifted, SHIFTED, made.targets, made.targets_segment_ids, made.weights)


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_pairs_start_with_the_start_token_in_each_segment(architecture):
    fields = FIELDS | {"name": "supervised", "inputs_length": 6, "targets_length": 5}
    objective = make_objective(fields, architecture, SHIFTED)
    (batch,) = _rows(make_batch(objective, np.zeros((1, 2), np.uint32), PAIRS, SHIFTED.table))
    check_decoder_inputs(batch)
    assert objective.bos == (NEW_BOS if architecture == "encoder_decoder" else None)


def _rows(batch):
    for row in range(len(batch.targets)):
        yield jax.tree.map(lambda value: np.asarray(value)[row], batch)  # noqa: B023 - used at once


@pytest.mark.parametrize("eos", [0, NEW_EOS])
@pytest.mark.parametrize("name", ["supervised", "tagging"])
def test_on_an_encoder_sep_stands_for_eos_and_padding_stays(name, eos):
    vocab = dataclasses.replace(SHIFTED, eos=eos)
    fields = FIELDS | {"name": name, "inputs_length": 6}
    objective = make_objective(fields, "encoder", vocab, ("x", "y"))
    rows = {"inputs": np.array([[5, 6, eos, 0, 0]]), "inputs_segment_ids": np.array([[1, 1, 1, 0, 0]])}
    rows["answers"] = np.array([1]) if name == "supervised" else np.array([[1, -1, -1, -1, -1]])
    batch = make_batch(objective, np.zeros((1, 2), np.uint32), rows, vocab.table)
    assert batch.inputs.tolist() == [[vocab.specials[CLS], 5, 6, vocab.specials[SEP], 0, 0]]
