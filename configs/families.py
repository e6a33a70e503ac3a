"""Train the shape of a released model from scratch on your text: T5, mT5, UL2, BART, BERT, GPT-2, Llama in all sizes.

    python -m t5lite.train --config configs/families.py:preset=t5_v1_1_base --workdir runs/t5 \
        --config.data.train.source='files:text/**/*.txt' --config.mesh.fsdp=8 --config.mesh.data=-1
    python -m t5lite.train --config configs/families.py:preset=gpt2_small,objective=fill_in_the_middle …

t5lite/model/presets.py lists the presets. The default objective is the family's own: span corruption, UL2's denoisers,
BART's noises, masked LM with next sentences, or causal LM. To start from released weights, set
`--config.init_from=hf:DIR`. The shape and the tokenizer are then those of DIR.
"""

from t5lite.config import base_config, parse_arg
from t5lite.model.presets import preset

OBJECTIVES = {"encoder_decoder": "span_corruption", "encoder": "mlm_nsp", "decoder": "causal_lm"}


def get_config(arg=None):
    arg = parse_arg(arg, preset="t5_v1_1_base", objective="")
    config = base_config()
    config.name = arg.preset
    config.model.update(preset(arg.preset))
    family = arg.preset.rpartition("_")[0]
    usual = {"ul2": "ul2", "bart": "bart"}.get(family, OBJECTIVES[config.model.architecture])
    config.objective.name = arg.objective or usual
    config.objective.inputs_length = 512
    # The embedding has rows for pieces, sentinels, and up to 8 special tokens. So train as many pieces as fit, rounded
    # down to a multiple of 100.
    config.tokenizer.sentinels = 0 if config.model.architecture == "encoder" else 100
    config.tokenizer.vocab_size = (config.model.vocab_size - config.tokenizer.sentinels - 8) // 100 * 100
    config.data.train.source = "pydocs/general"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.scan_layers = True
    config.batch_size = 128
    config.microbatches = 1
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_square_root"
    config.schedule.rate = 1e-2
    config.schedule.warmup_steps = 10_000
    config.budget.steps = 1_000_000
    config.log_every_steps = 100
    return config
