"""Which recipe fine-tunes a small network on a task? Each recipe, from scratch and from pre-trained networks.

    python -m t5lite.study --workdir runs/recipes --parallel 2 \
        --config configs/studies/recipes.py:source=files:reviews.train.jsonl,validation=files:reviews.validation.jsonl,\
    labels=200,encoder=runs/tiny_mlm,encoder_decoder=runs/tiny

encoder, encoder_decoder, decoder: runs of configs/tiny.py, or any other run or release, to start from. An architecture
that is not named takes no part. With scratch=True the same network also starts without its parameters, with its
tokenizer (of a run, not of a release). All recipes see the same number of examples; recipes=a+b chooses among RECIPES.
"""

from pathlib import Path

from t5lite.config import load_json, parse_arg, read_config, set_field
from t5lite.studies.study import repeat
from t5lite.system.errors import UserError, nearest

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
ARCHITECTURES = ("encoder", "encoder_decoder", "decoder")


def _choose(names):
    chosen = names.split("+") if names else list(RECIPES)
    for name in chosen:
        if name not in RECIPES:
            raise UserError(f"recipes: unknown recipe {name!r}; {nearest(name, RECIPES)}")
    return chosen


def get_study(arg=None):
    texts = {"source": "pydocs/science_topic", "validation": "", "answer": "label", "recipes": ""}
    starts = dict.fromkeys(ARCHITECTURES, "")
    arg = parse_arg(
        arg, labels=200, length=64, examples=3200, seeds=1, first_seed=0, scratch=True, rows=512, **texts, **starts
    )
    file, runs = Path(__file__).parents[1] / "finetune_tiny.py", {}
    for architecture in ARCHITECTURES:
        if not arg[architecture]:
            continue
        for name in _choose(arg.recipes):
            config = read_config(f"{file}:architecture={architecture}")
            config.data.train.source = arg.source
            config.data.train.limit = arg.labels
            config.data.validation.source = arg.validation or None
            config.objective.answer = arg.answer
            config.objective.inputs_length = arg.length
            config.eval.rows = arg.rows
            config.eval.generate_rows = 0
            for field, value in RECIPES[name].items():
                set_field(config, field, value)
            config.budget.steps = arg.examples // config.batch_size
            config.schedule.warmup_steps = config.budget.steps // 10
            config.checkpoint.every_steps = config.budget.steps
            config.init_from = arg[architecture]
            runs[f"{architecture}_{name}"] = config
            if arg.scratch:
                scratch = config.copy_and_resolve_references()
                scratch.init_from, scratch.tokenizer.path = None, arg[architecture]
                scratch.model.update(load_json(Path(arg[architecture]) / "config.json").model)
                scratch.model.update({"dropout": config.model.dropout, "dtype": config.model.dtype})
                runs[f"{architecture}_scratch_{name}"] = scratch
    return repeat(runs, range(arg.first_seed, arg.first_seed + arg.seeds))
