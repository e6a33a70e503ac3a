"""The catalogue: the architectures of each objective, the tokens that it needs, and the errors for bad settings."""

import dataclasses

import numpy as np
import pytest

from t5lite.config import base_config
from t5lite.objectives.catalogue import ARCHITECTURES, OBJECTIVES, special_tokens
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, MASK, PAD, UNKNOWN
from tests.objectives.made import build, vocabulary

MODES, FIM = ("[NLU]", "[NLG]", "[S2S]"), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
BOTH, DECODER = ("encoder_decoder", "decoder"), ("decoder",)
# The architectures of each objective, and the special tokens that it needs.
TABLE = {
    "span_corruption": (BOTH, ()),
    "iid_denoising": (BOTH, ()),
    "drop_tokens": (BOTH, ()),
    "bert_style": (BOTH, ()),
    "mass_style": (BOTH, ()),
    "deshuffling": (BOTH, ()),
    "prefix_lm": (BOTH, ()),
    "causal_lm": (DECODER, ()),
    "text_infilling": (BOTH, (MASK,)),
    "token_masking": (BOTH, (MASK,)),
    "token_deletion": (BOTH, ()),
    "sentence_permutation": (BOTH, ()),
    "document_rotation": (BOTH, ()),
    "bart": (BOTH, (MASK,)),
    "fill_in_the_middle": (DECODER, FIM),
    "ul2": (BOTH, MODES),
    "ul2r": (BOTH, ("[S2S]", "[NLU]", "[NLG]")),
    "mixture": (BOTH, (MASK, "[NLU]")),
    "supervised": (BOTH, ()),
    "chat": (BOTH, ()),
}
SETTINGS = {
    "mixture": {"mixture": {"a": {"name": "text_infilling"}, "b": {"name": "prefix_lm", "mode": "[NLU]"}}},
    "supervised": {"targets_length": 32},
    "chat": {"targets_length": 32},
}


def test_the_table_here_has_every_objective_that_leaves_tokens_in_a_row():
    assert {name for name, kind in OBJECTIVES.items() if kind.architectures != ("encoder",)} == set(TABLE)


COMBINATIONS = [
    (name, architecture)
    for name in TABLE
    for architecture in ARCHITECTURES
    # On an encoder, these objectives need labels, or members that work on an encoder.
    if (name, architecture) not in {("supervised", "encoder"), ("mixture", "encoder")}
]


@pytest.mark.parametrize("inputs_length", [64, 512])
@pytest.mark.parametrize(("name", "architecture"), COMBINATIONS)
def test_every_combination_is_built_or_refused(name, architecture, inputs_length):
    """The vocabulary has a hundred sentinels, and only the special tokens that the objective needs."""
    architectures, specials = TABLE[name]
    vocab, settings = vocabulary(specials=specials), SETTINGS.get(name, {})
    if architecture in architectures:
        objective = build(name, architecture, vocab, inputs_length=inputs_length, **settings)
        encoder_length, decoder_length = objective.lengths
        assert (encoder_length > 0) == (architecture == "encoder_decoder") and decoder_length > 0
    else:
        with pytest.raises(UserError, match=f"{name} has no meaning on config.model.architecture='{architecture}'"):
            build(name, architecture, vocab, inputs_length=inputs_length, **settings)


@pytest.mark.parametrize("name", [name for name, (_, specials) in TABLE.items() if specials])
def test_the_special_tokens_that_lack_are_named(name):
    architectures, specials = TABLE[name]
    with pytest.raises(UserError, match=r"config\.tokenizer\.specials") as refused:
        build(name, architectures[-1], vocabulary(specials=()), **SETTINGS.get(name, {}))
    assert f"{name} needs {', '.join(specials)}, but" in str(refused.value)
    fewer = vocabulary(specials=specials[1:])
    with pytest.raises(UserError) as refused:
        build(name, architectures[-1], fewer, **SETTINGS.get(name, {}))
    assert f"{name} needs {specials[0]}, but" in str(refused.value)


def test_a_config_asks_for_what_its_objective_needs_unless_it_names_them():
    config = base_config()
    for name, (_, specials) in TABLE.items():
        config.objective.name = name
        config.objective.mixture = SETTINGS.get(name, {}).get("mixture", {})
        assert special_tokens(config.tokenizer, config.objective) == specials, name
    config.tokenizer.specials = ("[CLS]",)
    assert special_tokens(config.tokenizer, config.objective) == ("[CLS]",)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iid_denoising", {"inputs_length": 1024}, r"needs 1\d\d sentinels, but the tokenizer has 100"),
        ("iid_denoising", {"inputs_length": 512, "noise_density": 0.5}, r"needs 1\d\d sentinels"),
        ("span_corruption", {"inputs_length": 2048}, "needs 114 sentinels"),
        ("span_corruption", {"noise_density": -0.1}, r"noise_density: must be at least 0 and below 1, is -0.1"),
        ("drop_tokens", {"noise_density": 1.0}, r"noise_density: must be at least 0 and below 1, is 1.0"),
        ("prefix_lm", {"noise_density": 1.5}, "noise_density"),
        ("prefix_lm", {"noise_density": 0.0}, "with 0, a prefix LM has no targets"),
        ("text_infilling", {"mean_noise_span_length": 0.0}, "mean_noise_span_length: must be at least 1, is 0.0"),
        ("token_deletion", {"inputs_length": 1}, "inputs_length: 1 is too short for a window of 2 tokens"),
        ("deshuffling", {"inputs_length": -3}, "inputs_length: -3 is too short for a window"),
        ("span_corruption", {"inputs_length": 0}, "inputs_length: 0 is too short for a window"),
        ("deshuffling", {"inputs_length": 2}, "inputs_length: 2 is too short for a window of 2 tokens"),
        ("deshufling", {}, "unknown objective 'deshufling'; did you mean 'deshuffling'"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        build(name, **settings)


@pytest.mark.parametrize(
    ("name", "sentinels", "message"),
    [
        ("span_corruption", 2, "needs 3 sentinels, but the tokenizer has 2"),
        ("iid_denoising", 2, r"needs \d\d sentinels, but the tokenizer has 2"),
        ("iid_denoising", 15, r"needs \d\d sentinels, but the tokenizer has 15"),
        ("bert_style", 0, "needs 1 sentinels, but the tokenizer has 0"),
        ("mass_style", 0, "needs 1 sentinels, but the tokenizer has 0"),
    ],
)
def test_too_few_sentinels_are_refused_with_the_number_that_is_needed(name, sentinels, message):
    with pytest.raises(UserError, match=message):
        build(name, vocab=vocabulary(sentinels=sentinels))


def test_the_number_of_sentinels_that_was_named_is_enough():
    for name, fewer in (("span_corruption", 2), ("iid_denoising", 10), ("mass_style", 0)):
        with pytest.raises(UserError) as refused:
            build(name, vocab=vocabulary(sentinels=fewer))
        needed = int(str(refused.value).split(" needs ")[1].split()[0])
        assert build(name, vocab=vocabulary(sentinels=needed)).window > 0


def test_objectives_without_sentinels_need_none():
    for name in ("drop_tokens", "prefix_lm", "deshuffling", "text_infilling", "bart", "document_rotation"):
        assert build(name, vocab=vocabulary(sentinels=0)).window > 0


@pytest.mark.parametrize(
    ("name", "holds_specials"), [("span_corruption", True), ("text_infilling", False), ("supervised", False)]
)
def test_what_targets_never_hold_may_not_be_generated(name, holds_specials):
    made = vocabulary()
    allowed = build(name, vocab=made, **SETTINGS.get(name, {})).allowed_ids(made)
    assert allowed.shape == (made.rows,)
    assert not allowed[[PAD, UNKNOWN]].any() and allowed[EOS] and allowed[UNKNOWN + 1 : made.pieces].all()
    assert (allowed[made.pieces :] == holds_specials).all()


def test_without_an_unknown_token_all_text_may_be_generated():
    made = dataclasses.replace(vocabulary(), unknown=None)
    allowed = build("text_infilling", vocab=made).allowed_ids(made)
    assert allowed[np.flatnonzero(~made.table.is_special)].all() and not allowed[PAD]
