"""Study: run configs that depend on one another, each after the runs that it needs, and report on all of them.

python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run
python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run --only summary_scratch

After an interruption, run the same command again: it resumes runs, retries failed runs, and skips complete runs.
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
from t5lite.reporting.bases import Candidate, check_bases, find_base, find_subject
from t5lite.reporting.comparison import Report
from t5lite.reporting.notes import evaluation_notes
from t5lite.reporting.report import write_report
from t5lite.reporting.runs import read_run
from t5lite.reporting.terminal import show
from t5lite.run.inherit import may_be_inherited, with_begun_shape
from t5lite.run.overrides import given_fields, override
from t5lite.studies.runner import run_study
from t5lite.studies.study import Study, find_unmet_need, is_repeated, read_study, repeat, select_runs, sort_by_needs
from t5lite.system.errors import UserError
from t5lite.train import train
from t5lite.training.workdir import check_same_run, make_workdir, read_result

NOT_ASKED_FOR = "not run: not asked for"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Study]:
    """Return the arguments, and the study that the arguments describe."""
    parser = cli.parser("study", __doc__)
    parser.add_argument("--config", required=True, help="FILE.py[:key=value,…] with get_study(arg)")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of the study, with a subfolder for each run"
    )
    only_help = "run only this run and the runs that it needs; repeat the flag for more runs"
    parser.add_argument("--only", action="append", help=only_help)
    count = in_range(int, 1, 1000)
    parallel_help = "number of runs at a time; they share the cores or GPUs"
    parser.add_argument("--parallel", type=count, default=1, help=parallel_help)
    parser.add_argument("--seeds", type=count, help="repeat every run with the seeds 0 … SEEDS - 1")
    cli.add_base(parser)
    arguments, rest = parser.parse_known_args(argv)
    study, arguments.flag_fields = read_study(arguments.config), given_fields(rest)
    _check_repeated(study, arguments.seeds is not None, arguments.flag_fields)
    # Several runs may share one config object. Override each object once.
    for config in {id(config): config for config in study.values()}.values():
        override(config, rest)
    # A wrong --base must fail before the runs, not after them.
    check_bases(arguments.base or (), _list_candidates(study))
    if arguments.seeds is not None:
        study = repeat(study, range(arguments.seeds))
    return arguments, study


def _check_repeated(study: Study, has_seeds: bool, flag_fields: Collection[str]) -> None:
    """Raise UserError for --seeds, --config.seed and --config.name if the study already repeats its runs over seeds.

    Raise UserError also for --seeds together with --config.seed.

    has_seeds: whether the command line has --seeds. flag_fields: the fields that the command line has set.
    """
    if has_seeds and "seed" in flag_fields:
        raise UserError("--seeds and --config.seed exclude each other; give only one of them")
    flags = ["--seeds"] * has_seeds + [f"--config.{field}" for field in ("seed", "name") if field in flag_fields]
    repeated = [name for name, config in study.items() if is_repeated(name, config)]
    if flags and repeated:
        raise UserError(f"{flags[0]}: the study already repeats its runs over seeds ({repeated[0]}); leave it out")


def _list_candidates(study: Study, names: Collection[str] | None = None) -> list[Candidate]:
    """Return the runs that can be a base of the report. names: only these runs; None: all runs."""
    return [
        Candidate({name, config.name}, find_subject(to_dict(config)))
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
    flag_fields: Collection[str] = (),
) -> Report:
    """Run the incomplete runs of `study`, each in the folder `folder`/name. Then write the report into `folder`.

    The report names the runs that failed.

    Args:
        bases: values of --base, as in `write_report`. A note in the report names each base that has no complete run.
        only: names of runs. Run only these runs and the runs that they need. Empty: run all.
        parallel: number of runs at a time, each in its own process. None: run one after another in this process. Use
            None in a notebook, because the notebook may hold the only device.
        flag_fields: the fields that the command line has set.

    Raises:
        UserError: if no run is complete.
        Interrupted: after a signal.
    """
    study = sort_by_needs(study)
    wanted = select_runs(study, only) if only else study
    make_workdir(folder)
    is_complete = functools.partial(_is_complete, study, folder, flag_fields)
    if parallel is None:
        absent = _run_here(wanted, folder, flag_fields)
    else:
        make_arguments = functools.partial(_make_arguments, study, flag_fields)
        absent = run_study(wanted, folder, is_complete, parallel, make_arguments)
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
    candidates = _list_candidates(study, complete)
    bases_without_runs = [text for text in bases if not find_base(text, candidates)]
    remarks = [
        f"--base {text}: no run of this base is complete, so the task has another base." for text in bases_without_runs
    ]
    runs = [read_run(folder / name) for name in complete]
    remarks += evaluation_notes(runs, {name: to_dict(study[name]) for name in complete})
    bases = [text for text in bases if text not in bases_without_runs]
    absent_workdirs = {folder / name: reason for name, reason in absent.items()}
    return write_report([run.workdir for run in runs], folder, title, bases, absent_workdirs, remarks)


def _is_complete(study: Study, folder: Path, flag_fields: Collection[str], name: str) -> bool:
    """Return whether the run `name` has its result. Raises UserError if the run's folder contains another run."""
    workdir = folder / name
    check_same_run(with_begun_shape(study[name], workdir, flag_fields) or study[name], workdir)
    return read_result(workdir) is not None


def _make_arguments(study: Study, flag_fields: Collection[str], config: Path, workdir: Path) -> list[str]:
    """Return the arguments of `train` for the run in `workdir`.

    Fields that the command line has set are set again here. Otherwise `init_from` would silently overwrite them.
    """
    run_config = study[workdir.name]
    flags = [f"--config.{name}={lookup_field(run_config, name)}" for name in flag_fields if may_be_inherited(name)]
    return ["--config", str(config), "--workdir", str(workdir), *flags]


def _run_here(study: Study, folder: Path, flag_fields: Collection[str]) -> dict[str, str]:
    """Run the study in this process, as `run_study` does in other processes.

    Return {name: why the run has no result}.
    """
    absent: dict[str, str] = {}
    for number, (name, config) in enumerate(study.items(), 1):
        reason = find_unmet_need(config, absent)
        if reason is not None:
            absent[name] = reason
            continue
        print(f"== {name} ({number} of {len(study)})", file=sys.stderr)
        try:
            train(config, folder / name, flag_fields=flag_fields)
        except UserError as error:
            absent[name] = f"failed: {error}"
        except Exception as error:  # a bug in one run must not stop the other runs
            traceback.print_exc()
            absent[name] = f"failed: {type(error).__name__}: {error}"
    return absent


def _describe_absent(absent: Mapping[str, str]) -> str:
    """Return a sentence about the runs without a result: how many they are, and why the first one has no result.

    Runs that were not asked for are counted only if no other run lacks a result.

    absent: {run: why it has no result}, in the order of the study.
    """
    counted = {name: why for name, why in absent.items() if not why.startswith(NOT_ASKED_FOR)} or absent
    # Name a run that failed, rather than a run that waited for the failed run.
    first = next((name for name, why in counted.items() if why.startswith("failed")), next(iter(counted)))
    count = "1 run has" if len(counted) == 1 else f"{len(counted)} runs have"
    return f"{count} no result: {first} {counted[first]}; run the same command again to retry"


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Run the study of --config in the folder --workdir, and print the report in short."""
    arguments, study = _parse(argv)
    title = Path(arguments.config.partition(":")[0]).stem.replace("_", " ")
    only, parallel = arguments.only or (), arguments.parallel
    bases, flag_fields = arguments.base or (), arguments.flag_fields
    report = run_and_report(study, arguments.workdir, title, bases, only, parallel, flag_fields)
    show(report, arguments.workdir)
    absent = {each.folder_name: each.status for each in report.entries if each.status != "complete"}
    absent = {name: absent[name] for name in study if name in absent}
    if any(not why.startswith(NOT_ASKED_FOR) for why in absent.values()):
        raise UserError(_describe_absent(absent))


if __name__ == "__main__":
    main()
