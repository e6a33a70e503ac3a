"""Run the runs of a study in processes of their own. A run that fails or is killed leaves the others alone.

There are as many processes as runs at a time (slots.py). Each process runs one run after the other, because what it has
imported and compiled serves the next run too.
"""

import importlib.util
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from t5lite.config import to_dict
from t5lite.data.tokenizers.text_tokenizer import VOCABULARY_FILE
from t5lite.studies.slots import Slot
from t5lite.studies.study import Study, references, unmet_need
from t5lite.system.errors import RUN_ME_AGAIN, Interrupted, UserError
from t5lite.system.files import write_json
from t5lite.system.memory import computes_on_cpu
from t5lite.system.signals import Stopping

POLL_SECONDS = 0.1


def run_study(
    study: Study,
    folder: Path,
    is_complete: Callable[[str], bool],
    parallel: int,
    arguments: Callable[[Path, Path], list[str]],
    module: str = "t5lite.train",
) -> dict[str, str]:
    """Run what is not complete, each run in `folder`/name, as soon as what it needs is there.

    Returns {name: why the run has no result}.

    Args:
        study: in an order in which its runs can run.
        is_complete: by the name of a run. A UserError counts as a failure of that run.
        parallel: the number of runs at a time.
        arguments: makes the arguments of `module`.main from the file of the config and the workdir.
        module: its `main` is the run.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the runs under way have saved their last steps; or where one of
            these runs alone was stopped.
    """
    if importlib.util.find_spec("libtpu") is not None and not computes_on_cpu():
        parallel = 1  # one process at a time can use a TPU
    runner = _Runner(study, folder, [Slot(number, parallel, module) for number in range(parallel)])
    with Stopping() as stop:
        try:
            while runner.waiting or runner.running:
                for name in runner.waiting:
                    runner.consider(name, is_complete, arguments)
                ended, _, _ = select.select(runner.running, [], [], POLL_SECONDS)
                for slot in ended:
                    runner.collect(slot, interrupted=bool(stop.received))
                if stop.received:
                    raise Interrupted("stopped; the same command goes on from there")
        finally:
            for slot in runner.slots:
                slot.stop()
            for slot in runner.slots:
                slot.close()
    return runner.absent


class _Runner:
    """The runs of a study by their state: waiting, running in a slot, complete, or absent for a reason."""

    def __init__(self, study: Study, folder: Path, slots: Sequence[Slot]):
        self.study, self.folder, self.slots = study, folder, slots
        self.complete: set[str] = set()
        self.absent: dict[str, str] = {}
        self.tokenizer_before: dict[str, int | None] = {}

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.run is not None]

    @property
    def waiting(self) -> list[str]:
        begun = {slot.run for slot in self.running} | self.complete | self.absent.keys()
        return [name for name in self.study if name not in begun]

    def consider(self, name: str, is_complete: Callable[[str], bool], arguments: Callable) -> None:
        """Start the run if its needs are met and a slot is free. Give it up if it waits in vain."""
        reason = unmet_need(self.study[name], self.absent)
        if reason is not None:
            self.absent[name] = reason
        elif len(self.running) < len(self.slots) and self._has_what_it_needs(name):
            try:
                done = is_complete(name)
            except UserError as error:
                self.absent[name] = f"failed: {error}"
                return
            place = f"{name} ({1 + list(self.study).index(name)} of {len(self.study)})"
            print(f"== {place}: complete" if done else f"== {place}", file=sys.stderr, flush=True)
            if done:
                self.complete.add(name)
            else:
                self._start(name, arguments)

    def _has_what_it_needs(self, name: str) -> bool:
        config = self.study[name]
        weights, needs = references(config, ["init_from"]), references(config)
        return self.complete.issuperset(weights) and all(
            each in self.complete or self._has_tokenizer(each) for each in needs
        )

    def _has_tokenizer(self, name: str) -> bool:
        """Return whether a run under way has written its tokenizer by now.

        A tokenizer that was there before does not count: the run may still refuse that one.
        """
        is_running = any(slot.run == name for slot in self.slots)
        return is_running and self._tokenizer_time(name) not in (None, self.tokenizer_before[name])

    def _tokenizer_time(self, name: str) -> int | None:
        """Return when the run's tokenizer was written, in nanoseconds; None where there is none."""
        path = self.folder / name / "tokenizer" / VOCABULARY_FILE
        return path.stat().st_mtime_ns if path.is_file() else None

    def _start(self, name: str, arguments: Callable) -> None:
        path = self.folder / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_dict(self.study[name]))
        deterministic = self.study[name].deterministic
        slot = min((slot for slot in self.slots if slot.run is None), key=lambda slot: not slot.suits(deterministic))
        self.tokenizer_before[name] = self._tokenizer_time(name)
        slot.start(name, arguments(path, self.folder / name), deterministic)

    def collect(self, slot: Slot, interrupted: bool) -> None:
        """Note how the run in `slot` has ended. interrupted: all runs were asked to stop, so the end says nothing."""
        name, (code, reason) = slot.run, slot.finish()
        if code == 0:
            self.complete.add(name)
        elif code == RUN_ME_AGAIN and not interrupted:
            raise Interrupted(f"{name} was stopped; the same command goes on from there")
        else:
            self.absent[name] = f"failed: {reason}"
