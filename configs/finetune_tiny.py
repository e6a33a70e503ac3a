"""Fine-tune the network of configs/tiny.py on pairs: any source with two columns, such as texts and summaries.

    python -m t5lite.train --config configs/finetune_tiny.py --config.init_from=runs/tiny --workdir runs/tiny_summary
    python -m t5lite.train --config configs/finetune_tiny.py:architecture=encoder --config.init_from=runs/tiny_mlm \
        --workdir runs/tiny_topic

An encoder generates no text. It chooses a label for each text, or gives another kind of answer (objective.answer).
Shape and tokenizer are those of `init_from`. Without `init_from` the network below is trained from scratch.
"""

from t5lite.config import base_config, parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, architecture="encoder_decoder")
    config = base_config()
    config.name = "finetune_tiny"
    on_encoder = arg.architecture == "encoder"
    config.data.train.source = "pydocs/science_topic" if on_encoder else "pydocs/summary_general"
    config.objective.name = "supervised"
    config.objective.inputs_length = 512
    if not on_encoder:
        config.objective.targets_length = 64
    config.model.architecture = arg.architecture
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.head_dim = 64
    config.model.num_encoder_layers = 8 if on_encoder else 4
    config.model.num_decoder_layers = 8 if arg.architecture == "decoder" else 4
    config.batch_size = 8
    config.optimizer.name = "adamw"
    config.schedule.name = "cosine"
    config.schedule.rate = 1e-3
    config.schedule.warmup_steps = 20
    config.budget.steps = 500
    return config
