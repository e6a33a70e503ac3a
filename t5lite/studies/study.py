"""Studies: named configs that depend on one another.

A study file has a function `get_study(arg)`, which returns {run name: config}. In `init_from` and `tokenizer.path`,
"@name" means another run of the study. In the config of a workdir, "@name" means the folder `name` beside the workdir,
so the folder of a study can be moved.

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

from t5lite.config import check_returned_config, lookup_field, set_field
from t5lite.run.siblings import REFERRING
from t5lite.system.errors import UserError, nearest
from t5lite.system.python_files import explain_errors, load_function

Study = dict[str, ConfigDict]
NAME = re.compile(r"\w[\w.=+-]*")
# Names that no run may have: files of the study in its folder, and files that would make the folder look like a run.
# Upper and lower case count as equal, because some disks do not distinguish them.
RESERVED = ("configs", "config", "config.json", "result.json", "report", "report.html", "report.md", "report.json")


def read_study(spec: str) -> Study:
    """Return the study of `FILE.py[:key=value,…]`, with each run after the runs that it needs.

    Raises UserError for a name that no folder can have, for a dependency that is not in the study, and for a cycle.
    """
    path, _, arg = spec.partition(":")
    get_study = load_function(Path(path), "get_study")
    with explain_errors(Path(path)):
        study = get_study(arg or None)
    if not isinstance(study, Mapping):
        kind = type(study).__name__
        raise UserError(f"{path}: get_study returned {kind}; it must return a dict {{run name: config}}")
    if not study:
        raise UserError(f"{path}: get_study returned an empty dict; it must return at least one run")
    for name, config in study.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{path}: {name!r} cannot be the name of a run's folder; use letters, digits and _-.=+")
        if name.lower() in RESERVED:
            raise UserError(f"{path}: a run cannot be called {name!r}, a name that t5lite uses itself; rename the run")
        check_returned_config(config, f"{path}: run {name}")
        if not is_repeated(name, config):
            config.name = name
    return sort_by_needs(study)


def is_repeated(name: str, config: ConfigDict) -> bool:
    """Return whether the run has a name that `repeat` makes: the config's name and seed."""
    return name == f"{config.name}-{config.seed}"


def list_references(config: ConfigDict, fields: Sequence[str] = REFERRING) -> list[str]:
    """Return the names of the runs that `config` needs: the runs of the same study that it names in `fields`."""
    values = [lookup_field(config, field) for field in fields]
    return [value[1:] for value in values if value and value.startswith("@")]


def find_unmet_need(config: ConfigDict, absent: Iterable[str]) -> str | None:
    """Return why `config` cannot run while the runs `absent` have no result; None if it can run."""
    missing = [name for name in list_references(config) if name in absent]
    return f"not run: it needs {missing[0]}, which has no result" if missing else None


def sort_by_needs(study: Mapping[str, ConfigDict]) -> Study:
    """Return the study, sorted so that each run comes after the runs that it needs. Otherwise keep the order.

    Raises UserError if a run needs a run that is not in the study, or if runs need each other in a circle.
    """
    ordered: Study = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            circle = " -> ".join((*waiting[waiting.index(name) :], name))
            raise UserError(f"the study's runs need each other in a circle: {circle}; remove one of these references")
        for needed in list_references(study[name]):
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

    study: as `sort_by_needs` returns it. only: names of runs. The name of a config selects all its repetitions.
    """
    names: set[str] = set()
    for text in only:
        matching = {name for name, config in study.items() if text in (name, config.name)}
        if not matching:
            known = set(study) | {config.name for config in study.values()}
            raise UserError(f"the study has no run {text!r}; {nearest(text, known)}")
        names |= matching
    for name in reversed(study):  # a run comes after the runs that it needs
        if name in names:
            names.update(list_references(study[name]))
    return {name: config for name, config in study.items() if name in names}


def repeat(runs: Mapping[str, ConfigDict], seeds: Iterable[int]) -> Study:
    """Return each run once for each seed, with the key "name-seed". `config.name` is the name without the seed.

    A reference to one of `runs` becomes a reference to the repetition with the same seed. Other references stay.
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
