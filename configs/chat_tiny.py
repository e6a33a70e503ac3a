"""Train a small decoder on conversations: rows with messages, or with prompt and completion.

    python -m t5lite.train --config configs/chat_tiny.py --config.data.train.source=files:chat.jsonl \
        --config.budget.steps=20 --workdir runs/chat
    python -m t5lite.generate --checkpoint runs/chat --interactive
"""

from t5lite.config import base_config


def get_config(arg=None):
    del arg
    config = base_config()
    config.name = "chat_tiny"
    config.tokenizer.source = "pydocs/general"
    config.tokenizer.vocab_size = 4000
    config.tokenizer.sample_bytes = 2_000_000
    config.tokenizer.sentinels = 0
    config.tokenizer.chat_template = "plain"
    config.objective.name = "chat"
    config.objective.inputs_length = 256
    config.model.architecture = "decoder"
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.head_dim = 64
    config.model.num_decoder_layers = 4
    config.batch_size = 8
    config.optimizer.name = "adamw"
    config.schedule.name = "cosine"
    config.schedule.rate = 1e-3
    config.schedule.warmup_steps = 10
    config.eval.max_new_tokens = 64
    config.budget.steps = 200
    return config
