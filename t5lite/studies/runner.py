"""Execute the runs of a study in other processes. A run that fails or is killed does not stop the other runs.

`parallel` processes work at the same time (slots.py). Each process executes one run after another. So the next run can
use the modules and programs that the process has already imported and compiled.
"""

import importlib.util
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from t5lite.config import to_dict
from t5lite.data.tokenizers.text_tokenizer import VOCABULARY_FILE
from t5lite.studies.slots import Slot
from t5lite.studies.study import Study, find_unmet_need, list_references
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
    make_arguments: Callable[[Path, Path], list[str]],
    module: str = "t5lite.train",
) -> dict[str, str]:
    """Execute the incomplete runs, each in the folder `folder`/name. Start each run when the runs it needs are ready.

    Returns {name: why the run has no result}.

    Args:
        study: the configs, each after the configs that it needs.
        is_complete: `is_complete(name)` returns whether the run has its result. If it raises UserError, the run counts
            as failed.
        parallel: the number of runs at a time.
        make_arguments: `make_arguments(config file, workdir)` returns the arguments of `module`.main.
        module: the module with the function `main` that executes a run.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when the current runs have saved their last steps. Also if a single run
            was stopped by such a signal.
    """
    if importlib.util.find_spec("libtpu") is not None and not computes_on_cpu():
        parallel = 1  # only one process at a time can use a TPU
    runner = _Runner(study, folder, [Slot(number, parallel, module) for number in range(parallel)])
    with Stopping() as stop:
        try:
            while runner.waiting or runner.running:
                for name in runner.waiting:
                    runner.start_if_ready(name, is_complete, make_arguments)
                ended, _, _ = select.select(runner.running, [], [], POLL_SECONDS)
                for slot in ended:
                    runner.collect(slot, interrupted=bool(stop.received))
                if stop.received:
                    raise Interrupted("the study was stopped; run the same command again")
        finally:
            for slot in runner.slots:
                slot.stop()
            for slot in runner.slots:
                slot.close()
    return runner.absent


class _Runner:
    """The state of each run of a study: waiting, running in a slot, complete, or absent (without a result, and why)."""

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

    def start_if_ready(self, name: str, is_complete: Callable[[str], bool], make_arguments: Callable) -> None:
        """Start the run if its needs are met and a slot is free. If a run that it needs failed, note it as absent."""
        reason = find_unmet_need(self.study[name], self.absent)
        if reason is not None:
            self.absent[name] = reason
        elif len(self.running) < len(self.slots) and self._needs_are_met(name):
            try:
                has_result = is_complete(name)
            except UserError as error:
                self.absent[name] = f"failed: {error}"
                return
            title = f"{name} ({1 + list(self.study).index(name)} of {len(self.study)})"
            print(f"== {title}: complete" if has_result else f"== {title}", file=sys.stderr, flush=True)
            if has_result:
                self.complete.add(name)
            else:
                self._start(name, make_arguments)

    def _needs_are_met(self, name: str) -> bool:
        """Return whether the run can start: its `init_from` is complete, and the run of its tokenizer has saved it."""
        config = self.study[name]
        weights, needs = list_references(config, ["init_from"]), list_references(config)
        return self.complete.issuperset(weights) and all(
            each in self.complete or self._has_tokenizer(each) for each in needs
        )

    def _has_tokenizer(self, name: str) -> bool:
        """Return whether a current run has written its tokenizer since its start.

        An older tokenizer does not count, because the run may still refuse it.
        """
        is_running = any(slot.run == name for slot in self.slots)
        return is_running and self._tokenizer_time(name) not in (None, self.tokenizer_before[name])

    def _tokenizer_time(self, name: str) -> int | None:
        """Return when the run's tokenizer was written, in nanoseconds; None if the run has no tokenizer."""
        path = self.folder / name / "tokenizer" / VOCABULARY_FILE
        return path.stat().st_mtime_ns if path.is_file() else None

    def _start(self, name: str, make_arguments: Callable) -> None:
        path = self.folder / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_dict(self.study[name]))
        deterministic = self.study[name].deterministic
        slot = min((slot for slot in self.slots if slot.run is None), key=lambda slot: not slot.can_run(deterministic))
        self.tokenizer_before[name] = self._tokenizer_time(name)
        slot.start(name, make_arguments(path, self.folder / name), deterministic)

    def collect(self, slot: Slot, interrupted: bool) -> None:
        """Note how the run in `slot` has ended.

        interrupted: whether all runs were asked to stop. Then it is no surprise that this run was stopped.
        """
        name, (code, reason) = slot.run, slot.finish()
        if code == 0:
            self.complete.add(name)
        elif code == RUN_ME_AGAIN and not interrupted:
            raise Interrupted(f"run {name} was stopped; run the same command again")
        else:
            self.absent[name] = f"failed: {reason}"
