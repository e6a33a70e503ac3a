"""Study: runs that depend on one another, in the order in which they can run, and the report on them.

python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run
python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run --only summary_scratch

The same command goes on after an interruption, tries again what failed, and leaves alone what is complete.
"""

import argparse
import functools
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from t5lite import cli
from t5lite.checks import in_range
from t5lite.config import lookup_field, to_dict
from t5lite.reporting.bases import Candidate, find_bases, subject_of
from t5lite.reporting.comparison import Report
from t5lite.reporting.notes import evaluation_notes
from t5lite.reporting.report import write_report
from t5lite.reporting.runs import read_run
from t5lite.reporting.terminal import show
from t5lite.run.inherit import as_begun, may_be_inherited
from t5lite.run.overrides import given_fields, override
from t5lite.studies.runner import run_study, train_arguments
from t5lite.studies.study import Study, chosen, in_order, is_repeated, read_study, repeat, unmet_need
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.workdir import check_same_run, make_workdir, read_result

NOT_ASKED_FOR = "not run: not asked for"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Study]:
    """The arguments, and the study they ask for."""
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
    _check_repeated(study, arguments.seeds is not None, rest)
    for config in {id(config): config for config in study.values()}.values():
        override(config, rest)
    find_bases(arguments.base or (), _candidates(study))  # now, and not when all has run
    if arguments.seeds is not None:
        study = repeat(study, range(arguments.seeds))
    return arguments, study


def _check_repeated(study: Study, seeds: bool, overrides: Sequence[str]) -> None:
    """Refuse to repeat again, or to give one seed or name, what the study repeats. seeds: --seeds is given."""
    repeated = [name for name, config in study.items() if is_repeated(name, config)]
    fields = [match[1] for each in overrides if (match := re.match("--?config[.](seed|name)(=|$)", each))]
    if seeds and "seed" in fields:
        raise UserError("--seeds and --config.seed: give one of them")
    for flag in ["--seeds"] * seeds + [f"--config.{field}" for field in fields]:
        if repeated:
            raise UserError(f"{flag}: {repeated[0]} says that the study repeats its runs itself")


def _candidates(study: Study) -> list[Candidate]:
    """What may be a base of the report, by the runs' configs."""
    return [Candidate({name, config.name}, subject_of(to_dict(config))) for name, config in study.items()]


def _is_complete(study: Study, folder: Path, given: Collection[str], name: str) -> bool:
    """Whether the run has its result. Raises UserError where its folder holds another run."""
    workdir = folder / name
    check_same_run(as_begun(study[name], workdir, given) or study[name], workdir)
    return read_result(workdir) is not None


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

    bases: what the report compares with, as in `write_report`; a note says where none of its runs is complete. only:
    run these and what they need; none: all. parallel: runs at a time, in as many processes; None: one after another in
    this process, for a notebook, which may hold the only device. given: the fields that the command line has set.

    The report names the runs that failed. Raises UserError where none is complete, Interrupted after a signal.
    """
    study = in_order(study)
    wanted = chosen(study, only) if only else study
    make_workdir(folder)
    is_complete = functools.partial(_is_complete, study, folder, given)
    if parallel is None:
        failed = _run_here(wanted, folder, given)
    else:
        failed = run_study(wanted, folder, is_complete, parallel, functools.partial(_arguments, study, given))
    absent: dict[str, str] = {}
    for name in study:
        reason = failed.get(name) or _unfit(is_complete, name)
        if reason is not None:
            absent[name] = reason
    done = [name for name in study if name not in absent]
    if not done:
        raise UserError(_lacking(absent))
    there = _candidates({name: study[name] for name in done})
    lacking = [text for text in bases if not _has_base(text, there)]
    remarks = [f"--base {text}: none of its runs is complete, so its task has another base." for text in lacking]
    remarks += evaluation_notes(
        [read_run(folder / name) for name in done], {name: to_dict(study[name]) for name in done}
    )
    bases = [text for text in bases if text not in lacking]
    return write_report([folder / name for name in done], folder, title, bases, absent, remarks)


def _has_base(text: str, candidates: Sequence[Candidate]) -> bool:
    try:
        return bool(find_bases([text], candidates))
    except UserError:
        return False


def _unfit(is_complete: Callable[[str], bool], name: str) -> str | None:
    """Why a run that did not fail has no part in the report; None where it has."""
    try:
        return None if is_complete(name) else NOT_ASKED_FOR
    except UserError as error:
        return f"{NOT_ASKED_FOR}; {error}"


def _arguments(study: Study, given: Collection[str], config: Path, workdir: Path) -> list[str]:
    """The arguments of the run in `workdir`. They set again what was `given` and init_from would replace in silence."""
    fields = study[workdir.name]
    shape = [f"--config.{name}={lookup_field(fields, name)}" for name in given if may_be_inherited(name)]
    return train_arguments(config, workdir, shape)


def _run_here(study: Study, folder: Path, given: Collection[str]) -> dict[str, str]:
    """As `run_study`, in this process."""
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


def _lacking(absent: Mapping[str, str]) -> str:
    """What to say of runs without a result, given in the study's order, of which some were asked for."""
    failed = {name: why for name, why in absent.items() if not why.startswith(NOT_ASKED_FOR)} or absent
    # What failed comes before what waited for it.
    first = next((name for name, why in failed.items() if why.startswith("failed")), next(iter(failed)))
    count = "1 run has" if len(failed) == 1 else f"{len(failed)} runs have"
    return f"{count} no result: {first} {failed[first]}; the same command tries them again"


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Run the study at --config in --workdir, and print what the report found."""
    arguments, study = _parse(argv)
    title = Path(arguments.config.partition(":")[0]).stem.replace("_", " ")
    only, parallel = arguments.only or (), arguments.parallel
    report = run_and_report(study, arguments.workdir, title, arguments.base or (), only, parallel, arguments.given)
    show(report, arguments.workdir)
    statuses = {each.run: each.status for each in report.entries}
    absent = {name: statuses[name] for name in study if statuses[name] != "complete"}
    if any(not why.startswith(NOT_ASKED_FOR) for why in absent.values()):
        raise UserError(_lacking(absent))


if __name__ == "__main__":
    main()
