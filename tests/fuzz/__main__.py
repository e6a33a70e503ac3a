"""Random cases for as long as is asked, and how many succeeded, were refused, failed.

    python -m tests.fuzz --minutes 60 [--only data,flags] [--seed 0]

Failures are printed as they come and kept, case and all, under --keep. Exit code 1 if there was one.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def fuzz(minutes: float, names: list[str], seed: int, keep: Path) -> Counter:
    """The number of cases by fuzzer and what came of them."""
    import hypothesis

    from tests.fuzz.fuzzers import FUZZERS
    from tests.fuzz.ground import Ground

    counts: Counter = Counter()
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="t5lite-fuzz-") as made:
        ground = Ground(Path(made) / "ground")

        def run_some(name: str, count: int, seed: int) -> None:
            fuzzer = FUZZERS[name]

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(fuzzer.cases(ground))
            def some(case) -> None:
                if time.monotonic() > end:
                    return
                folder = Path(tempfile.mkdtemp(dir=made))
                outcome = fuzzer.run(case, ground, folder)
                if ground.trace.exists():
                    ground.trace.unlink()
                    outcome = outcome._replace(kind="failed", said="something of a file was executed")
                shutil.rmtree(folder)
                counts[name, outcome.kind] += 1
                if outcome.kind == "failed":
                    keep.mkdir(parents=True, exist_ok=True)
                    place = keep / f"{name}-{counts[name, 'failed']}.txt"
                    place.write_text(f"{case!r}\n\n{outcome.said}\n", errors="backslashreplace")
                    print(f"failed: {place}", flush=True)

            some()

        while time.monotonic() < end:
            for name in names:
                run_some(name, FUZZERS[name].tests, seed)
            seed += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", help="names of fuzzers, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for the cases that failed")
    arguments = parser.parse_args()
    from tests.fuzz.fuzzers import FUZZERS

    names = arguments.only.split(",") if arguments.only else list(FUZZERS)
    counts = fuzz(arguments.minutes, names, arguments.seed, arguments.keep)
    for name in names:
        said = ", ".join(f"{counts[name, kind]} {kind}" for kind in ("succeeded", "refused", "failed"))
        print(f"{name}: {sum(counts[name, kind] for kind in ('succeeded', 'refused', 'failed'))} cases, {said}")
    sys.exit(any(kind == "failed" for _, kind in counts.elements()))


if __name__ == "__main__":
    main()
