"""The constructor refuses a config that cannot work, and the error names the field."""

import pytest

from t5lite.model.config import ModelConfig
from t5lite.system.errors import UserError

SMALL = dict(
    num_encoder_layers=2, num_decoder_layers=2, vocab_size=256, d_model=32, d_ff=64, num_heads=4, head_dim=8
)  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "decoder", "architecture"), [(2, 2, "encoder_decoder"), (0, 2, "decoder"), (2, 0, "encoder")]
)
def test_architecture_follows_from_layers(encoder, decoder, architecture):
    config = ModelConfig(**{**SMALL, "num_encoder_layers": encoder, "num_decoder_layers": decoder})
    assert config.architecture == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"activation": "geglue"}, "activation='geglue' .*geglu"),
        ({"positions": "lerned"}, "positions='lerned' .*learned"),
        ({"positions": "learned"}, "max_positions: learned positions need it"),
        ({"positions": "sinusoidal", "d_model": 33}, "d_model=33 must be even"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide config.model.num_heads=4"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"norm_position": "sandwich"}, "norm_position='sandwich'"),
        ({"biases": "some"}, "biases='some'"),
        ({"initialisation": "t6"}, "initialisation='t6'"),
        ({"rotary_scaling": ("llama3", 8.0)}, "rotary_scaling"),
        ({"rotary_scaling": ()}, "rotary_scaling"),
        ({"logits_soft_cap": 0.0}, "logits_soft_cap=0.0"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"d_model": 32.0}, "d_model=32.0"),
        ({"positions": "rotary", "head_dim": 7}, "head_dim=7 must be even"),
        ({"relative_buckets": 30}, "relative_buckets=30"),
        ({"relative_max_distance": 16}, "relative_max_distance=16"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"remat": True}, "remat=True"),
        ({"attention": "flash"}, "attention='flash'"),
        ({"norm_epsilon": 0.0}, "norm_epsilon=0.0"),
        ({"num_encoder_layers": 0, "num_decoder_layers": 0}, "both 0"),
        ({"num_encoder_layers": -1}, "num_encoder_layers=-1"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**{**SMALL, **change})
