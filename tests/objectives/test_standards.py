"""The standards, which compare runs with different objectives."""

import pytest

from t5lite.config import base_config
from t5lite.objectives.catalogue import make_objective, make_standards
from tests.objectives.made import vocabulary


def _standards(name, architecture, sentinels=100, **settings):
    fields = {**base_config().objective.to_dict(), "name": name, "inputs_length": 64, **settings}
    specials = ("[MASK]", "[CLS]", "[SEP]", "[NLU]", "[S2S]", "[NLG]", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    vocab = vocabulary(sentinels=sentinels, specials=specials)
    return make_standards(fields, make_objective(fields, architecture, vocab), vocab)


@pytest.mark.parametrize(
    ("name", "architecture", "settings", "expected"),
    [
        ("span_corruption", "encoder_decoder", {}, set()),
        ("span_corruption", "encoder_decoder", {"noise_density": 0.15}, set()),
        ("span_corruption", "encoder_decoder", {"noise_density": 0.5}, {"span_corruption"}),
        ("bart", "encoder_decoder", {}, {"span_corruption"}),
        ("prefix_lm", "decoder", {}, {"span_corruption", "causal_lm"}),
        ("ul2", "decoder", {}, {"span_corruption", "causal_lm"}),
        ("fill_in_the_middle", "decoder", {}, {"causal_lm"}),
        ("causal_lm", "decoder", {"prefix_attention": False}, set()),
        ("causal_lm", "decoder", {"segments": False}, {"causal_lm"}),
        ("mlm_nsp", "encoder", {}, set()),
    ],
)
def test_which_standards_an_objective_has(name, architecture, settings, expected):
    assert set(_standards(name, architecture, **settings)) == expected


def test_a_standard_is_the_usual_objective_with_the_runs_own_attention():
    found = _standards("ul2", "decoder", noise_density=0.5, mean_noise_span_length=8.0)
    spans, plain = found["span_corruption"], found["causal_lm"]
    assert (spans.window, spans.inputs_length, spans.targets_length, spans.prefix_attention) == (70, 64, 14, True)
    assert (plain.window, plain.prefix_attention, plain.segments, plain.predicts_text) == (64, False, True, True)


def test_a_standard_that_needs_more_sentinels_than_there_are_is_left_out():
    assert _standards("bart", "encoder_decoder", sentinels=2) == {}
