"""An ablation: the pre-training of first_run.py with three optimizers, 400 steps, three seeds each.

python -m t5lite.study --config configs/studies/optimizers.py --workdir runs/optimizers --parallel 2
"""

from pathlib import Path

from t5lite.studies import read_study, repeat

VARIANTS = {
    "adamw": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.rate_multipliers": None},
    "muon": {"optimizer.weight_decay": 0.0, "optimizer.rate_multipliers": None, "schedule.rate": 1e-2},
    "muon_tuned": {},
}


def get_study(arg=None):
    runs = {}
    for name, fields in VARIANTS.items():
        runs[name] = read_study(str(Path(__file__).with_name("first_run.py")))["pretrain"]
        runs[name].update_from_flattened_dict({"budget.steps": 400, **fields})
    return repeat(runs, seeds=range(3))
