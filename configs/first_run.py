"""The main job of `make run`: a small encoder-decoder from raw text to summaries, on any machine, without a download.

    W=runs/first_run
    python -m t5lite.train --config configs/first_run.py --workdir $W/pretrain
    python -m t5lite.train --config configs/first_run.py:stage=finetune --config.init_from=$W/pretrain --workdir $W/task

`pretrain` learns to fill blanks in the docstrings of installed Python packages (span corruption), `finetune` to write
the first sentence of a docstring from the rest of it.
"""

from t5lite.config import base_config, parse_arg


def get_config(arg=None):
    stage = parse_arg(arg, stage="pretrain").stage
    config = base_config()
    config.name = stage
    config.tokenizer.vocab_size = 4000
    config.tokenizer.sample_bytes = 4_000_000
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.head_dim = 32
    config.model.num_encoder_layers = 2
    config.model.num_decoder_layers = 2
    config.objective.inputs_length = 128
    config.optimizer.name = "muon"
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 50
    config.eval.batch_size = 32
    if stage == "pretrain":
        config.data.train.source = "pydocs/general"
        config.batch_size = 32
        config.schedule.rate = 1e-2
        config.budget.steps = 1000
        config.eval.every_steps = 500
        config.checkpoint.every_steps = 200
    else:
        config.data.train.source = "pydocs/summary_general"
        config.objective.name = "supervised"
        config.objective.targets_length = 32
        config.batch_size = 32
        config.schedule.rate = 5e-3
        config.budget.steps = 450
        config.checkpoint.every_steps = 100
    return config
