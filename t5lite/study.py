"""Study: runs that depend on one another, in the order in which they can run, and the report on them.

python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run
python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run --only summary_scratch

The same command goes on after an interruption, tries again what failed, and leaves alone what is complete.
"""

import argparse
import functools
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from t5lite import cli
from t5lite.checks import in_range
from t5lite.config import lookup_field, to_dict
from t5lite.reporting.bases import Candidate, check_bases, find_base, subject_of
from t5lite.reporting.comparison import Report
from t5lite.reporting.notes import evaluation_notes
from t5lite.reporting.report import write_report
from t5lite.reporting.runs import read_run
from t5lite.reporting.terminal import show
from t5lite.run.inherit import as_begun, may_be_inherited
from t5lite.run.overrides import given_fields, override
from t5lite.studies.runner import run_study
from t5lite.studies.study import Study, is_repeated, read_study, repeat, select_runs, sort_by_needs, unmet_need
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.workdir import check_same_run, make_workdir, read_result

NOT_ASKED_FOR = "not run: not asked for"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Study]:
    """Return the arguments, and the study they ask for."""
    parser = cli.parser("study", __doc__)
    parser.add_argument("--config", required=True, help="FILE.py[:key=value,…] with get_study(arg)")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the study; each run has one in it")
    parser.add_argument("--only", action="append", help="run this one, and what it needs; may be given again")
    count = in_range(int, 1, 1000)
    parser.add_argument("--parallel", type=count, default=1, help="runs at a time, which share cores or GPUs")
    parser.add_argument("--seeds", type=count, help="repeat every run with the seeds 0 … SEEDS - 1")
    cli.add_base(parser)
    arguments, rest = parser.parse_known_args(argv)
    study, arguments.given = read_study(arguments.config), given_fields(rest)
    _check_repeated(study, arguments.seeds is not None, arguments.given)
    for config in {id(config): config for config in study.values()}.values():
        override(config, rest)
    check_bases(arguments.base or (), _candidates(study))  # now, and not when all has run
    if arguments.seeds is not None:
        study = repeat(study, range(arguments.seeds))
    return arguments, study


def _check_repeated(study: Study, seeds: bool, given: Collection[str]) -> None:
    """Refuse flags that repeat the runs, or give them one seed or name, where the study itself repeats its runs.

    seeds: whether --seeds is given. given: the fields that the command line has set.
    """
    if seeds and "seed" in given:
        raise UserError("--seeds and --config.seed: give one of them")
    flags = ["--seeds"] * seeds + [f"--config.{field}" for field in ("seed", "name") if field in given]
    repeated = [name for name, config in study.items() if is_repeated(name, config)]
    if flags and repeated:
        raise UserError(f"{flags[0]}: {repeated[0]} says that the study repeats its runs itself")


def _candidates(study: Study, names: Collection[str] | None = None) -> list[Candidate]:
    """Return what may be a base of the report: the runs `names`; None: all runs."""
    return [
        Candidate({name, config.name}, subject_of(to_dict(config)))
        for name, config in study.items()
        if names is None or name in names
    ]


def run_and_report(
    study: Study,
    folder: Path,
    title: str,
    bases: Sequence[str] = (),
    only: Sequence[str] = (),
    parallel: int | None = 1,
    given: Collection[str] = (),
) -> Report:
    """Run what of `study` is not complete, each run in `folder`/name, and write the report into `folder`.

    The report names the runs that failed.

    Args:
        bases: what the report compares with, as in `write_report`. A note names those without a complete run.
        only: run these and what they need; none: all.
        parallel: runs at a time, in as many processes. None: one after another in this process, for a notebook, which
            may hold the only device.
        given: the fields that the command line has set.

    Raises:
        UserError: where no run is complete.
        Interrupted: after a signal.
    """
    study = sort_by_needs(study)
    wanted = select_runs(study, only) if only else study
    make_workdir(folder)
    is_complete = functools.partial(_is_complete, study, folder, given)
    if parallel is None:
        absent = _run_here(wanted, folder, given)
    else:
        absent = run_study(wanted, folder, is_complete, parallel, functools.partial(_arguments, study, given))
    for name in study.keys() - absent.keys():
        try:
            if not is_complete(name):
                absent[name] = NOT_ASKED_FOR
        except UserError as error:
            absent[name] = f"{NOT_ASKED_FOR}; {error}"
    absent = {name: absent[name] for name in study if name in absent}
    complete = [name for name in study if name not in absent]
    if not complete:
        raise UserError(_describe_absent(absent))
    candidates = _candidates(study, complete)
    lacking = [text for text in bases if not find_base(text, candidates)]
    remarks = [f"--base {text}: none of its runs is complete, so its task has another base." for text in lacking]
    runs = [read_run(folder / name) for name in complete]
    remarks += evaluation_notes(runs, {name: to_dict(study[name]) for name in complete})
    bases = [text for text in bases if text not in lacking]
    return write_report([run.workdir for run in runs], folder, title, bases, absent, remarks)


def _is_complete(study: Study, folder: Path, given: Collection[str], name: str) -> bool:
    """Return whether the run has its result. Raises UserError where its folder holds another run."""
    workdir = folder / name
    check_same_run(as_begun(study[name], workdir, given) or study[name], workdir)
    return read_result(workdir) is not None


def _arguments(study: Study, given: Collection[str], config: Path, workdir: Path) -> list[str]:
    """Return the arguments of the run in `workdir`.

    They set the `given` fields once more: `init_from` would silently replace those fields by its own.
    """
    fields = study[workdir.name]
    shape = [f"--config.{name}={lookup_field(fields, name)}" for name in given if may_be_inherited(name)]
    return ["--config", str(config), "--workdir", str(workdir), *shape]


def _run_here(study: Study, folder: Path, given: Collection[str]) -> dict[str, str]:
    """Do the work of `run_study` in this process. Return {name: why the run has no result}."""
    absent: dict[str, str] = {}
    for number, (name, config) in enumerate(study.items(), 1):
        reason = unmet_need(config, absent)
        if reason is not None:
            absent[name] = reason
            continue
        print(f"== {name} ({number} of {len(study)})", file=sys.stderr)
        try:
            train(config, folder / name, given=given)
        except UserError as error:
            absent[name] = f"failed: {error}"
        except Exception as error:  # a bug in one run is none in the others
            traceback.print_exc()
            absent[name] = f"failed: {type(error).__name__}: {error}"
    return absent


def _describe_absent(absent: Mapping[str, str]) -> str:
    """Return a sentence about the runs without a result: how many, and why the first has none.

    absent: {run: why it has no result}, in the order of the study. Runs that were not asked for count only if all are.
    """
    failed = {name: why for name, why in absent.items() if not why.startswith(NOT_ASKED_FOR)} or absent
    # What failed comes before what waited for it.
    first = next((name for name, why in failed.items() if why.startswith("failed")), next(iter(failed)))
    count = "1 run has" if len(failed) == 1 else f"{len(failed)} runs have"
    return f"{count} no result: {first} {failed[first]}; the same command tries them again"


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Run the study at --config in --workdir, and print what the report says."""
    arguments, study = _parse(argv)
    title = Path(arguments.config.partition(":")[0]).stem.replace("_", " ")
    only, parallel = arguments.only or (), arguments.parallel
    report = run_and_report(study, arguments.workdir, title, arguments.base or (), only, parallel, arguments.given)
    show(report, arguments.workdir)
    absent = {each.run: each.status for each in report.entries if each.status != "complete"}
    absent = {name: absent[name] for name in study if name in absent}
    if any(not why.startswith(NOT_ASKED_FOR) for why in absent.values()):
        raise UserError(_describe_absent(absent))


if __name__ == "__main__":
    main()
