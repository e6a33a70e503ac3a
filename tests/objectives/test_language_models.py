"""Language models on a decoder: causal, prefix, and fill in the middle."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.objectives.language_models import FIM_TOKENS, move_middle, number_parts
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS
from tests.objectives.made import PLAIN, build, check_chances, check_share, examples, make, windows

PRE, SUF, MID = (PLAIN.specials[name] for name in FIM_TOKENS)


@pytest.mark.parametrize(
    ("low", "high", "suffix_first", "expected"),
    [
        (2, 5, False, [PRE, 10, 11, SUF, 15, 16, MID, 12, 13, 14]),
        (2, 5, True, [PRE, SUF, 15, 16, MID, 10, 11, 12, 13, 14]),
        (0, 3, False, [PRE, SUF, 13, 14, 15, 16, MID, 10, 11, 12]),
        (0, 3, True, [PRE, SUF, 13, 14, 15, 16, MID, 10, 11, 12]),
        (4, 4, False, [PRE, 10, 11, 12, 13, SUF, 14, 15, 16, MID]),
        (4, 4, True, [PRE, SUF, 14, 15, 16, MID, 10, 11, 12, 13]),
        (3, 7, False, [PRE, 10, 11, 12, SUF, MID, 13, 14, 15, 16]),
        (3, 7, True, [PRE, SUF, MID, 10, 11, 12, 13, 14, 15, 16]),
        (0, 7, False, [PRE, SUF, MID, 10, 11, 12, 13, 14, 15, 16]),
        (7, 7, False, [PRE, 10, 11, 12, 13, 14, 15, 16, SUF, MID]),
    ],
)
def test_the_middle_goes_to_the_end(low, high, suffix_first, expected):
    specials = jnp.array([PRE, SUF, MID])
    assert move_middle(jnp.arange(10, 17), number_parts(7, low, high), specials, suffix_first).tolist() == expected


def _undo_move(side):
    """Return (window, cuts) of a side whose middle is at the end. cuts: None if the suffix comes first."""
    assert side[0] == PRE and side.count(PRE) == side.count(SUF) == side.count(MID) == 1
    suf, mid = side.index(SUF), side.index(MID)
    if suf == 1:
        suffix, rest = side[2:mid], side[mid + 1 :]
        return rest + suffix, None
    prefix, suffix, middle = side[1:suf], side[suf + 1 : mid], side[mid + 1 :]
    return prefix + middle + suffix, (len(prefix), len(prefix) + len(middle))


def test_undoing_the_move_gives_the_window_back():
    objective = build("fill_in_the_middle", "decoder")
    assert (objective.window, objective.lengths) == (61, (0, 64))
    moved = 0
    for seen in examples(objective, windows(objective, 200)):
        if PRE in seen.targets:
            moved += 1
            assert _undo_move(seen.targets)[0] == seen.window and len(seen.targets) == 64
            middle = np.array(seen.window)[np.asarray(seen.noise.mask)].tolist()
            assert seen.targets[len(seen.targets) - len(middle) :] == middle
        else:
            assert seen.targets == seen.window and not seen.noise.mask.any()
    assert 0 < moved < 200


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.9, 0.9)])
def test_the_middle_is_moved_at_the_rate(rate, share):
    """False alarm 1e-4 for rates between 0 and 1."""
    objective = build("fill_in_the_middle", "decoder", inputs_length=8, fim_rate=rate)
    example = make(objective, np.repeat(windows(objective, 1), 2000, axis=0))
    check_share((example.targets[:, 0] == PRE).sum(), 2000, share)
    assert (example.weights.sum(axis=1) == np.where(example.targets[:, 0] == PRE, 8, 5)).all(), "on all tokens"


def test_cuts_are_uniform_and_parts_may_be_empty():
    """Two points in [0, 5], in any order: 36 pairs, and 21 of them are different. False alarm 2e-4.

    If the suffix comes first, or the prefix is empty, the tokens do not show both cuts. But the noise has the middle.
    """
    objective = build("fill_in_the_middle", "decoder", inputs_length=8, fim_rate=1.0)
    example = make(objective, np.repeat(windows(objective, 1), 8000, axis=0))
    cuts = [cut for side in example.targets.tolist() if (cut := _undo_move(side)[1])]
    seen = [(low, high) for high in range(6) for low in range(1, high + 1)]
    chances = np.array([1 if low == high else 2 for low, high in seen], float)
    assert set(cuts) == set(seen)
    check_chances([cuts.count(pair) for pair in seen], chances / chances.sum())
    lengths = example.noise.mask.sum(axis=1)
    check_chances(np.bincount(lengths, minlength=6), np.array([6, 10, 8, 6, 4, 2]) / 36)


def test_both_orders_are_as_likely():
    """11 of the 6 · 6 pairs of cuts have an empty prefix, and then the order is not visible. False alarm 1e-4."""
    objective = build("fill_in_the_middle", "decoder", inputs_length=8, fim_rate=1.0)
    example = make(objective, np.repeat(windows(objective, 1), 4000, axis=0))
    check_share((example.targets[:, 1] == SUF).sum(), 4000, 0.5 + 0.5 * 11 / 36)


def test_a_causal_model_reads_the_window_as_it_is():
    for segments in (True, False):
        objective = build("causal_lm", "decoder", inputs_length=16, segments=segments)
        assert (objective.window, objective.with_eos, objective.lengths) == (16, True, (0, 16))
        for seen in examples(objective, windows(objective, 2)):
            assert seen.inputs == [] and seen.targets == seen.window and seen.batch.weights.sum() == 16
            assert seen.batch.decoder_inputs.tolist() == [0, *seen.window[:-1]] and seen.batch.prefix_mask is None


def test_a_prefix_of_three_of_eight_on_a_decoder():
    """Four positions of the shifted inputs see each other. The loss starts at the position of the last input."""
    objective = build("prefix_lm", "decoder", inputs_length=8)
    tokens = np.repeat(np.arange(10, 18)[None], 64, axis=0)
    splits = set()
    for seen in examples(objective, tokens):
        split = len(seen.inputs)
        splits.add(split)
        assert seen.batch.targets.tolist() == list(range(10, 18))
        assert seen.batch.decoder_inputs.tolist() == [0, *range(10, 17)]
        assert seen.batch.prefix_mask.tolist() == [True] * (split + 1) + [False] * (7 - split)
        assert seen.batch.weights.tolist() == [0] * split + [1] * (8 - split)
        if split == 3:
            assert seen.batch.weights.tolist() == [0, 0, 0, 1, 1, 1, 1, 1] and seen.batch.prefix_mask.sum() == 4
    assert splits == set(range(1, 8))


def test_a_prefix_and_its_continuation_are_one_text_on_a_decoder_and_two_on_an_encoder_decoder():
    on_decoder, on_both = build("prefix_lm", "decoder"), build("prefix_lm")
    assert on_decoder.predicts_text and on_decoder.lengths == (0, on_decoder.window)
    for seen in examples(on_decoder, windows(on_decoder, 4)):
        assert EOS not in seen.batch.targets
    for seen in examples(on_both, windows(on_both, 4)):
        assert seen.inputs[-1] == EOS == seen.targets[-1]
        assert seen.inputs[:-1] + seen.targets[:-1] == seen.window


def test_prefix_attention_is_the_prefix_lms_own_unless_it_is_turned_off():
    for given, expected in ((None, True), (True, True), (False, False)):
        objective = build("prefix_lm", "decoder", prefix_attention=given)
        seen = examples(objective, windows(objective, 1))[0]
        assert (seen.batch.prefix_mask is not None) == expected
    objective = build("span_corruption", "decoder")
    assert examples(objective, windows(objective, 1))[0].batch.prefix_mask is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fill_in_the_middle", {"fim_rate": 1.5}, r"fim_rate: must be from 0 to 1"),
        ("fill_in_the_middle", {"inputs_length": 4}, "is too short for a window of 2 tokens"),
        ("fill_in_the_middle", {"prefix_attention": True}, "has no inputs, so no position may see a later one"),
        ("causal_lm", {"prefix_attention": True}, "has no inputs, so no position may see a later one"),
        ("causal_lm", {"inputs_length": 1}, "must be at least 2"),
    ],
)
def test_settings_without_sense_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        build(name, "decoder", **settings)
