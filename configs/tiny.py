"""The small network of the examples and benchmarks: any objective on any architecture, on one machine.

python -m t5lite.train --config configs/tiny.py --workdir runs/tiny
python -m t5lite.train --config configs/tiny.py:architecture=decoder,objective=causal_lm --workdir runs/tiny_lm
"""

from t5lite.config import base_config, parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, architecture="", objective="span_corruption")
    config = base_config()
    config.name = "tiny"
    config.data.train.source = "pydocs/general"
    config.objective.name = arg.objective
    config.objective.inputs_length = 512
    architecture = arg.architecture or ("decoder" if arg.objective == "causal_lm" else "encoder_decoder")
    config.model.architecture = architecture
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.head_dim = 64
    config.model.num_encoder_layers = 4
    config.model.num_decoder_layers = 8 if architecture == "decoder" else 4
    config.tokenizer.vocab_size = 8000
    config.tokenizer.sentinels = 100
    config.batch_size = 8
    config.optimizer.name = "adamw"
    config.schedule.name = "cosine"
    config.schedule.rate = 5e-3
    config.schedule.warmup_steps = 20
    config.schedule.final_fraction = 0.1
    config.budget.steps = 1000
    return config
