"""Mixtures: UL2's windows and counts, the shares of the members, mode tokens, and errors for bad settings."""

import numpy as np
import pytest

from t5lite.config import base_config
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS
from t5lite.tasks.table import make_evaluation_objective, make_objective
from tests.objectives.made import PLAIN, build, check_chances, check_share, examples, make, vocabulary, windows
from tests.objectives.test_every_objective import interleave

NLU, S2S, NLG = (PLAIN.specials[name] for name in ("[NLU]", "[S2S]", "[NLG]"))
# For windows of 568 tokens, by hand: (mode, noise tokens, spans). The last quarter has no sentinels.
UL2 = [(NLU, 85, 28), (NLU, 85, 11), (NLG, 284, 95), (NLG, 284, 36), (NLG, 85, 1), (NLG, 284, 4), (S2S, 142, 0)]
UL2R = [(S2S, 142, 0), (NLU, 85, 28), (NLG, 85, 3), (NLG, 284, 95)]


def _make_examples(name, architecture, count=100):
    objective = build(name, architecture, inputs_length=512)
    seen = examples(objective, windows(objective, count))
    return objective, [(int(one.example.member), one) for one in seen]


@pytest.mark.parametrize(("name", "members"), [("ul2", UL2), ("ul2r", UL2R)])
def test_members_on_an_encoder_decoder(name, members):
    """(.5, 3) makes 380 + 380 tokens with 95 sentinels, and the mode token comes first in the inputs."""
    objective, seen = _make_examples(name, "encoder_decoder")
    assert (objective.window, objective.inputs_length, objective.targets_length) == (568, 513, 380)
    assert {member for member, _ in seen} == set(range(len(members)))
    for member, one in seen:
        mode, noise, spans = members[member]
        inputs, targets = one.inputs, one.targets
        assert inputs[0] == mode and inputs[-1] == EOS == targets[-1]
        assert (len(inputs), len(targets)) == (1 + 568 - noise + spans + 1, noise + spans + 1)
        assert one.noise.mask.sum() == noise
        if spans:
            assert interleave(inputs[1:-1], targets[:-1]) == one.window
            assert one.noise.starts.sum() == spans
        else:
            assert inputs[1:-1] + targets[:-1] == one.window, "the last quarter"


@pytest.mark.parametrize(("name", "members"), [pytest.param("ul2", UL2, marks=pytest.mark.slow), ("ul2r", UL2R)])
def test_members_on_a_decoder(name, members):
    """A row has the mode token, inputs and targets. Only the last quarter has no EOS between inputs and targets."""
    objective, seen = _make_examples(name, "decoder")
    assert objective.lengths == (0, 1 + 380 + 380) and objective.prefix_attention
    for member, one in seen:
        mode, _, spans = members[member]
        row, padding = one.inputs + one.targets, [0] * (761 - len(one.inputs) - len(one.targets))
        assert one.batch.targets.tolist() == row + padding
        assert one.batch.decoder_inputs[:2].tolist() == [0, mode]
        assert one.batch.prefix_mask.tolist() == [i <= len(one.inputs) for i in range(761)]
        if spans:
            assert len(row) == 1 + 568 + 2 * spans + 2
        else:
            assert row == [mode, *one.window] and len(one.targets) == 142
            assert one.batch.weights[:569].tolist() == [0] * 427 + [1] * 142


SMALL = {name: {"name": name} for name in ("deshuffling", "prefix_lm", "document_rotation")}


@pytest.mark.parametrize(("name", "chances"), [("ul2", [1 / 7] * 7), ("ul2r", [0.5, 0.25, 0.125, 0.125])])
def test_the_members_of_ul2_are_as_likely_and_half_of_ul2r_is_the_last_quarter(name, chances):
    """False alarm 1e-4."""
    objective = build(name, inputs_length=512)
    tokens = windows(objective, 100)
    member = np.concatenate([make(objective, tokens, seed).member for seed in range(12)])
    check_chances(np.bincount(member, minlength=len(chances)), np.array(chances))


def test_members_are_chosen_by_weight():
    """False alarm 1e-4."""
    weighted = {name: {**SMALL[name], "weight": weight} for name, weight in zip(SMALL, (1.0, 5, 2.0), strict=True)}
    objective = build("mixture", mixture=weighted)
    member = make(objective, np.repeat(windows(objective, 1), 4000, axis=0)).member
    check_chances(np.bincount(member), np.array([0.125, 0.625, 0.25]))


def test_the_choice_of_a_member_says_nothing_of_its_noise():
    """Split points of the prefix LM are uniform in a mixture too. False alarm 1e-4."""
    objective = build("mixture", inputs_length=12, mixture={name: SMALL[name] for name in ("deshuffling", "prefix_lm")})
    made = make(objective, np.repeat(windows(objective, 1), 4000, axis=0))
    split = made.noise.mask[made.member == 1].argmax(axis=1)
    assert objective.window == 11, "deshuffling's, the smaller"
    check_share((split <= 5).sum(), len(split), 0.5)


def test_a_mixture_of_one_is_that_one_with_its_mode_in_front():
    mixed = build("mixture", mixture={"only": {"name": "span_corruption", "mode": "[NLU]"}})
    alone = build("span_corruption")
    assert [member.name for member in mixed.members] == ["only"] and mixed.window == alone.window
    for seen in examples(mixed, windows(mixed, 16)):
        assert seen.inputs[0] == NLU and interleave(seen.inputs[1:-1], seen.targets[:-1]) == seen.window
        assert (len(seen.inputs), len(seen.targets)) == (65, 14) and seen.example.member == 0


def test_the_window_is_the_smallest_of_the_members_and_the_sides_the_largest():
    mixture = {"short": {"name": "mass_style"}, "long": {"name": "span_corruption"}}
    objective = build("mixture", inputs_length=64, mixture=mixture)
    assert objective.window == 63 and objective.targets_length == 64
    # 63 tokens: 9 of noise in 3 spans, so 54 + 3 + 1 and 9 + 3 + 1.
    lengths = {(len(seen.inputs), len(seen.targets)) for seen in examples(objective, windows(objective, 16))}
    assert lengths == {(64, 64), (58, 13)}


def test_members_take_what_they_do_not_set_from_the_objective():
    mixture = {"a": {"name": "span_corruption"}, "b": {"name": "span_corruption", "noise_density": 0.5}}
    objective = build("mixture", inputs_length=64, noise_density=0.25, mixture=mixture)
    counts = {int(seen.noise.mask.sum()) for seen in examples(objective, windows(objective, 16))}
    assert counts == {round(objective.window * 0.25), round(objective.window * 0.5)}


def test_on_a_decoder_language_models_mix_with_denoisers():
    mixture = {name: {"name": name} for name in ("causal_lm", "fill_in_the_middle", "span_corruption")}
    objective = build("mixture", "decoder", inputs_length=64, mixture=mixture)
    assert not objective.with_eos and not objective.segments
    seen = examples(objective, windows(objective, 32))
    assert {int(one.example.member) for one in seen} == {0, 1, 2}
    for one in seen:
        assert one.batch.weights.sum() == len(one.targets)
        assert (one.inputs == []) == (one.example.member < 2)
        if one.example.member == 0:
            assert one.targets == one.window
    alone = build("mixture", "decoder", mixture={"a": {"name": "causal_lm"}})
    assert alone.with_eos and alone.segments and alone.predicts_text


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "config.objective.mixture: is empty"),
        ({"a": {"name": "span_corruptio"}}, r"mixture.a.name: unknown objective 'span_corruptio'; did you mean"),
        ({"a": {}}, r"mixture.a.name: unknown objective None"),
        ({"a": "span_corruption"}, r"mixture.a.name: unknown objective None"),
        ({"a": {"name": "ul2"}}, r"mixture.a.name: unknown objective 'ul2'"),
        ({"a": {"name": "prefix_lm", "wieght": 1.0}}, "mixture.a: unknown field wieght; did you mean 'weight'"),
        ({"a": {"name": "prefix_lm", "weight": 0}}, "mixture.a.weight: must be a positive number, is 0"),
        ({"a": {"name": "prefix_lm", "weight": -1.0}}, "must be a positive number"),
        ({"a": {"name": "prefix_lm", "weight": float("inf")}}, "must be a positive number"),
        ({"a": {"name": "prefix_lm", "weight": "2"}}, "must be a positive number"),
        (
            {"a": {"name": "causal_lm"}},
            "mixture.a: causal_lm has no meaning on config.model.architecture='enc",
        ),
        ({"a": {"name": "prefix_lm", "mode": "[XYZ]"}}, r"needs \[XYZ\], but the tokenizer does not have"),
        ({"a": {"name": "span_corruption", "noise_density": 1.0}}, "noise_density"),
    ],
)
def test_members_that_cannot_be_are_refused(mixture, message):
    with pytest.raises(UserError, match=message):
        build("mixture", mixture=mixture)


def test_ul2_needs_its_mode_tokens():
    with pytest.raises(UserError, match=r"ul2 needs \[NLU\], \[NLG\], \[S2S\], but the tokenizer does not have"):
        build("ul2", vocab=vocabulary(specials=()))


def test_ul2_at_512_needs_95_sentinels():
    assert build("ul2", vocab=vocabulary(sentinels=95), inputs_length=512).window == 568
    with pytest.raises(UserError, match="needs 95 sentinels, but the tokenizer has 94"):
        build("ul2", vocab=vocabulary(sentinels=94), inputs_length=512)
    with pytest.raises(UserError, match=r"ul2, X \(3, .5\) .* needs 95 sentinels, but the tokenizer has 5;"):
        build("ul2", vocab=vocabulary(sentinels=5), inputs_length=512)  # several members have too few sentinels


ON_ENCODER = {"dense": {"name": "mlm", "noise_density": 0.3, "weight": 2.0}, "pairs": {"name": "mlm_nsp"}}


def test_masked_language_models_mix_on_an_encoder():
    """Windows fit [CLS] A [SEP] B [SEP]. A member without a label has -1; a member without token types has zeros."""
    vocab = vocabulary(specials=("[MASK]", "[CLS]", "[SEP]"))
    objective = build("mixture", "encoder", vocab, mixture=ON_ENCODER)
    assert (objective.window, objective.inputs_length, objective.second_window) == (61, 64, True)
    counts = {0: 19, 1: 10}  # .3 of 63, .15 of 64
    for one in examples(objective, windows(objective, 40), vocab=vocab):
        member = int(one.example.member)
        assert int(one.example.answers["next_sentence"]) in ((-1,), (0, 1))[member]
        assert one.example.token_types.any() == (member == 1)
        real = one.example.inputs_segment_ids > 0
        assert real.tolist() == [True] * (63 + member) + [False] * (1 - member)
        assert one.example.weights.sum() == counts[member] and not one.example.weights[~real].any()
        changed = one.example.inputs != one.example.targets
        assert not (changed & (one.example.weights == 0)).any()


def test_a_mixture_is_evaluated_as_its_members_are():
    fields = {**base_config().objective.to_dict(), "name": "mixture", "inputs_length": 64, "mixture": ON_ENCODER}
    vocab = vocabulary(specials=("[MASK]", "[CLS]", "[SEP]"))
    assert make_objective(fields, "encoder", vocab).predicted == 19
    assert make_evaluation_objective(fields, "encoder", vocab).predicted == 10


def test_an_encoder_has_no_place_for_mode_tokens_or_a_denoiser():
    vocab = vocabulary(specials=("[MASK]", "[CLS]", "[SEP]", "[NLU]"))
    with pytest.raises(UserError, match="cannot have mode tokens"):
        build("mixture", "encoder", vocab, mixture={"a": {"name": "mlm", "mode": "[NLU]"}})
    with pytest.raises(UserError, match=r"mixture\.a: span_corruption has no meaning"):
        build("mixture", "encoder", vocab, mixture={"a": {"name": "span_corruption"}})
