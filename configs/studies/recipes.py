"""Which recipe fine-tunes a small network on a task? Each recipe, from scratch and after pre-training.

    python -m t5lite.study --workdir runs/recipes --parallel 2 \
        --config configs/studies/recipes.py:source=files:reviews.train.jsonl,validation=files:reviews.validation.jsonl,\
    labels=200

The study pre-trains a network of each architecture on `text`. encoder=RUN, encoder_decoder=RUN and decoder=RUN start
from networks that are there, of the same shape. All recipes see the same number of examples. recipes=a+b and
architectures=a+b choose some of them.
"""

from pathlib import Path

from t5lite.config import parse_arg, read_config, set_field
from t5lite.studies.study import repeat
from t5lite.system.errors import UserError, nearest

CONFIGS = Path(__file__).parents[1]
ADAMW = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "schedule.name": "cosine", "batch_size": 16}
MUON = {
    "optimizer.name": "muon",
    "optimizer.adam_rate": 2.0,
    "optimizer.weight_decay": 0.5,
    "optimizer.rate_multipliers": ((".*query.*", 0.125), (".*", 1.0)),
    "schedule.name": "cosine",
    "batch_size": 16,
}
RECIPES = {
    "adamw_1e-3_b8": {**ADAMW, "schedule.rate": 1e-3, "batch_size": 8},
    "adamw_1e-3": {**ADAMW, "schedule.rate": 1e-3},
    "adamw_3e-4": {**ADAMW, "schedule.rate": 3e-4},
    "adamw_1e-4": {**ADAMW, "schedule.rate": 1e-4},
    "adamw_3e-4_dropout": {**ADAMW, "schedule.rate": 3e-4, "model.dropout": 0.1},
    "muon_5e-3": {**MUON, "schedule.rate": 5e-3},
    "muon_2e-3": {**MUON, "schedule.rate": 2e-3},
    "muon_1e-3": {**MUON, "schedule.rate": 1e-3},
}
OBJECTIVES = {"encoder": "mlm", "encoder_decoder": "span_corruption", "decoder": "causal_lm"}


def _choose(names, known, field):
    chosen = names.split("+") if names else list(known)
    for name in chosen:
        if name not in known:
            raise UserError(f"{field}: unknown name {name!r}; {nearest(name, known)}")
    return chosen


def _set_shape(config, arg):
    config.model.d_model, config.model.d_ff = arg.d_model, 2 * arg.d_model
    config.model.head_dim = arg.d_model // config.model.num_heads
    both = config.model.architecture == "encoder_decoder"
    config.model.num_encoder_layers = config.model.num_decoder_layers = arg.layers // 2 if both else arg.layers


def _pretraining(architecture, arg):
    config = read_config(f"{CONFIGS}/tiny.py:architecture={architecture},objective={OBJECTIVES[architecture]}")
    _set_shape(config, arg)
    config.data.train.source = arg.text
    config.tokenizer.vocab_size = 4000
    config.objective.inputs_length = 64
    config.batch_size = 32
    config.budget.steps = arg.pretrain_steps
    config.eval.every_steps = config.checkpoint.every_steps = arg.pretrain_steps
    return config


def _task(architecture, recipe, arg):
    config = read_config(f"{CONFIGS}/finetune_tiny.py:architecture={architecture}")
    _set_shape(config, arg)
    config.data.train.source = arg.source
    config.data.train.limit = arg.labels
    config.data.validation.source = arg.validation or None
    config.objective.answer = "label"
    config.objective.inputs_length = arg.length
    config.eval.rows = arg.rows
    config.eval.generate_rows = 0
    for field, value in RECIPES[recipe].items():
        set_field(config, field, value)
    config.budget.steps = arg.examples // config.batch_size
    config.schedule.warmup_steps = config.budget.steps // 10
    config.checkpoint.every_steps = config.budget.steps
    return config


def get_study(arg=None):
    sources = {"source": "pydocs/science_topic", "validation": "", "text": "pydocs/general"}
    sizes = {"labels": 200, "length": 64, "examples": 3200, "rows": 512, "seeds": 1, "first_seed": 0}
    shape = {"d_model": 128, "layers": 4, "pretrain_steps": 1000}
    starts = {"encoder": "", "encoder_decoder": "", "decoder": ""}
    arg = parse_arg(arg, recipes="", architectures="encoder+encoder_decoder", **sources, **sizes, **shape, **starts)
    pretraining, runs = {}, {}
    for architecture in _choose(arg.architectures, OBJECTIVES, "architectures"):
        start = arg[architecture] or f"@pretrain_{architecture}"
        if not arg[architecture]:
            pretraining[start[1:]] = _pretraining(architecture, arg)
        for recipe in _choose(arg.recipes, RECIPES, "recipes"):
            scratch, pretrained = _task(architecture, recipe, arg), _task(architecture, recipe, arg)
            scratch.tokenizer.path = pretrained.init_from = start
            runs |= {f"{architecture}_scratch_{recipe}": scratch, f"{architecture}_pretrained_{recipe}": pretrained}
    return pretraining | repeat(runs, range(arg.first_seed, arg.first_seed + arg.seeds))
