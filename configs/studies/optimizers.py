"""An ablation: the pre-training of first_run.py with three optimizers, 400 steps, three seeds each.

python -m t5lite.study --config configs/studies/optimizers.py --workdir runs/optimizers --parallel 2

A variant changes several things together, so their differences are those of whole settings and not of one method:

adamw        AdamW at the rate 5e-3, weight decay 0.01, one rate for all parameters
muon         Muon at the rate 1e-2, Adam at twice that for embeddings, no weight decay, else one rate
muon_tuned   as in first_run.py: Muon at 5e-3, Adam at twice that, weight decay 0.5, less for queries and the encoder

The rates of muon_tuned were chosen by trials on this task (see first_run.py). That of adamw is the same 5e-3 and was
not tuned: with one of its own it may do better.
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
