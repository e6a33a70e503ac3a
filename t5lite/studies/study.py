"""Studies: named configs that depend on one another.

A study file has `get_study(arg)`, which returns {run name: config}. "@name" as `init_from` or `tokenizer.path` means
another run of the study. In a workdir "@name" means the run in the folder beside it, so a study's folder can be moved.

    def get_study(arg=None):
        pretrain, scratch = read_config("configs/tiny.py"), read_config("configs/finetune_tiny.py")
        pretrained = scratch.copy_and_resolve_references()
        scratch.tokenizer.path = pretrained.init_from = "@pretrain"
        return {"pretrain": pretrain} | repeat({"scratch": scratch, "pretrained": pretrained}, seeds=range(3))
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.config import check_returned_config, explain_errors, load_function, lookup_field, set_field
from t5lite.run.siblings import REFERRING
from t5lite.system.errors import UserError, nearest

Study = dict[str, ConfigDict]
NAME = re.compile(r"\w[\w.=+-]*")
# Names in a study's folder that are not runs, or that would make the folder look like a run. They are compared without
# regard to case, because not every disk tells cases apart.
RESERVED = ("configs", "config", "config.json", "result.json", "report", "report.html", "report.md", "report.json")


def read_study(spec: str) -> Study:
    """Return the study of `FILE.py[:key=value,…]`, in an order in which its runs can run.

    Raises UserError for a name that no folder can have, for a dependency that is not in the study, and for a cycle.
    """
    path, _, arg = spec.partition(":")
    get_study = load_function(Path(path), "get_study")
    with explain_errors(Path(path)):
        study = get_study(arg or None)
    if not isinstance(study, Mapping):
        raise UserError(f"{path}: get_study returned {type(study).__name__} and not a dict of configs by name")
    if not study:
        raise UserError(f"{path}: get_study returned a dict without any run")
    for name, config in study.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{path}: a run's name is its folder's, {name!r} cannot be; use letters, digits and _-.=+")
        if name.lower() in RESERVED:
            raise UserError(f"{path}: a run cannot be called {name!r}, which the study's folder has a use for")
        check_returned_config(config, f"{path}: run {name}")
        if not is_repeated(name, config):
            config.name = name
    return sort_by_needs(study)


def is_repeated(name: str, config: ConfigDict) -> bool:
    """Return whether the run is one of several seeds, with a name as `repeat` gives it."""
    return name == f"{config.name}-{config.seed}"


def references(config: ConfigDict, fields: Sequence[str] = REFERRING) -> list[str]:
    """Return the names of the runs of the same study that `config` names in `fields`, and so needs."""
    values = [lookup_field(config, field) for field in fields]
    return [value[1:] for value in values if value and value.startswith("@")]


def unmet_need(config: ConfigDict, absent: Iterable[str]) -> str | None:
    """Return why `config` cannot run when the runs `absent` have no result; None where it can run."""
    lacking = [name for name in references(config) if name in absent]
    return f"not run: it needs {lacking[0]}, which has no result" if lacking else None


def sort_by_needs(study: Mapping[str, ConfigDict]) -> Study:
    """Return the study with every run after the runs that it needs, otherwise in the order of `study`.

    Raises UserError where a run needs what is not in the study, and where runs need each other.
    """
    ordered: Study = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            circle = " -> ".join((*waiting[waiting.index(name) :], name))
            raise UserError(f"the study's runs need each other in a circle: {circle}")
        for needed in references(study[name]):
            if needed not in study:
                raise UserError(f"run {name} needs @{needed}, which is not in the study; {nearest(needed, study)}")
            if needed not in ordered:
                add(needed, (*waiting, name))
        ordered.setdefault(name, study[name])

    for name in study:
        add(name, ())
    return ordered


def select_runs(study: Study, only: Iterable[str]) -> Study:
    """Return the runs that `only` names, and all runs that they need.

    only: names of runs, or names that the repetitions of a run share.
    """
    names: set[str] = set()
    for wanted in only:
        named = {name for name, config in study.items() if wanted in (name, config.name)}
        if not named:
            known = set(study) | {config.name for config in study.values()}
            raise UserError(f"the study has no run {wanted!r}; {nearest(wanted, known)}")
        names |= named
    for name in reversed(study):  # the runs that a run needs stand before it
        if name in names:
            names.update(references(study[name]))
    return {name: config for name, config in study.items() if name in names}


def repeat(runs: Mapping[str, ConfigDict], seeds: Iterable[int]) -> Study:
    """Return every run once for each seed, under "name-seed", with the name in `config.name`.

    A reference to one of `runs` becomes a reference to that run with the same seed. Other references stay.
    """
    repeated = {}
    for seed in seeds:
        for name, config in runs.items():
            copy = config.copy_and_resolve_references()
            copy.name, copy.seed = name, seed
            for field in REFERRING:
                if lookup_field(copy, field) in {f"@{name}" for name in runs}:
                    set_field(copy, field, f"{lookup_field(copy, field)}-{seed}")
            repeated[f"{name}-{seed}"] = copy
    return repeated
