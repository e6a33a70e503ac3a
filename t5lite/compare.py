"""Compare: write a report over any runs, with intervals over their seeds.

python -m t5lite.compare runs/scratch-0 runs/scratch-1 runs/pretrained-0 runs/pretrained-1 --out runs/report
python -m t5lite.compare runs/summary --base scratch --out runs/summary
python -m t5lite.compare runs/tasks --base science_topic=scratch --base summary=scratch --out runs/tasks
"""

import json
from collections.abc import Sequence
from pathlib import Path

from t5lite import cli
from t5lite.reporting.comparison import INCOMPLETE
from t5lite.reporting.report import to_json, write_report
from t5lite.reporting.runs import find_workdirs, statuses_in_study
from t5lite.reporting.terminal import show


def _make_title(folders: Sequence[Path]) -> str:
    names = list(dict.fromkeys(folder.resolve().name for folder in folders))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"Comparison of {', '.join(names[:4])}{more}"


def _list_absent(folders: Sequence[Path]) -> dict[Path, str]:
    """Return {workdir: why the run has no result} for the studies among `folders`.

    A status that begins with INCOMPLETE is left out: the run may have gone on since the report was written. If its
    workdir is still there, the comparison finds the present status.
    """
    return {
        folder / name: status
        for folder in folders
        for name, status in statuses_in_study(folder).items()
        if status != "complete" and not status.startswith(INCOMPLETE) and not (folder / name / "result.json").is_file()
    }


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Write the report on the runs in `folders`, and print the report in short."""
    parser = cli.parser("compare", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="D", help="a run's workdir, or a folder of workdirs")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.html, report.md and report.json")
    cli.add_base(parser)
    parser.add_argument("--title", help="the report's title")
    parser.add_argument("--json", action="store_true", help="print the content of report.json as one line")
    arguments = parser.parse_args(argv)
    workdirs, title = find_workdirs(arguments.folders), arguments.title or _make_title(arguments.folders)
    report = write_report(workdirs, arguments.out, title, arguments.base or (), _list_absent(arguments.folders))
    if arguments.json:
        print(json.dumps(to_json(report)))
        return
    show(report, arguments.out)


if __name__ == "__main__":
    main()
