"""Runs of a study, in processes of their own, so that one that fails, or is killed, leaves the others alone.

There are as many processes as runs at a time (slots.py). Each runs one run after the other: what it has imported and
compiled, the next run needs as well.
"""

import contextlib
import importlib.util
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from t5lite.config import to_dict
from t5lite.data.tokenizers.text_tokenizer import VOCABULARY_FILE
from t5lite.studies.slots import Slot
from t5lite.studies.study import Study, references, unmet_need
from t5lite.system.errors import RUN_ME_AGAIN, Interrupted, UserError
from t5lite.system.files import write_json
from t5lite.system.memory import computes_on_cpu

POLL_SECONDS = 0.1


def train_arguments(config: Path, workdir: Path, flags: Sequence[str] = ()) -> list[str]:
    """The arguments with which `train` runs the config in the file `config`, with further `flags`."""
    return ["--config", str(config), "--workdir", str(workdir), *flags]


def run_study(
    study: Study,
    folder: Path,
    is_complete: Callable[[str], bool],
    parallel: int = 1,
    arguments: Callable[[Path, Path], list[str]] = train_arguments,
    module: str = "t5lite.train",
) -> dict[str, str]:
    """Run what is not complete, each run in `folder`/name once what it needs is there, `parallel` at a time.

    `study` is in an order in which its runs can run. `is_complete(name)` may raise UserError, which counts as that
    run's failure. arguments(config, workdir): those of `module`.main, which is the run. Returns {name: why the run has
    no result}. Raises Interrupted after SIGINT or SIGTERM, once the runs under way have saved their last steps; or
    where one of them alone was stopped so.
    """
    if importlib.util.find_spec("libtpu") is not None and not computes_on_cpu():
        parallel = 1  # a process holds the TPU whole
    work = _Work(study, folder, is_complete, [Slot(number, parallel, module) for number in range(parallel)], arguments)
    with _signals() as received:
        try:
            while work.waiting or work.running:
                work.start_what_can()
                work.collect(interrupted=bool(received))
                if received:
                    raise Interrupted("stopped; the same command goes on from there")
        finally:
            work.stop()
    return work.absent


class _Work:
    """The runs of a study: waiting, running, complete, or absent for a reason."""

    def __init__(self, study: Study, folder: Path, is_complete: Callable, slots: Sequence[Slot], arguments: Callable):
        self.study, self.folder, self.slots = study, folder, slots
        self.is_complete, self.arguments = is_complete, arguments
        self.waiting = list(study)
        self.complete: set[str] = set()
        self.absent: dict[str, str] = {}
        self.tokenizer_before: dict[str, int | None] = {}

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.run is not None]

    def start_what_can(self) -> None:
        """Start runs whose needs are met, as far as there are slots; give up those that wait for nothing."""
        for name in list(self.waiting):
            reason = unmet_need(self.study[name], self.absent)
            if reason is not None:
                self.absent[name] = reason
            elif len(self.running) == len(self.slots) or not self._has_what_it_needs(name):
                continue
            else:
                self._start_or_skip(name)
            self.waiting.remove(name)

    def _has_what_it_needs(self, name: str) -> bool:
        config = self.study[name]
        if not self.complete.issuperset(references(config, ["init_from"])):
            return False
        return all(each in self.complete or self._has_tokenizer(each) for each in references(config))

    def _has_tokenizer(self, name: str) -> bool:
        """Whether a run under way has written its tokenizer by now. One that lay there before may be refused yet."""
        written = _time_of(self._tokenizer(name))
        return any(slot.run == name for slot in self.slots) and written not in (None, self.tokenizer_before[name])

    def _tokenizer(self, name: str) -> Path:
        return self.folder / name / "tokenizer" / VOCABULARY_FILE

    def _start_or_skip(self, name: str) -> None:
        try:
            if self.is_complete(name):
                print(f"== {self._numbered(name)}: complete", file=sys.stderr, flush=True)
                self.complete.add(name)
                return
        except UserError as error:
            self.absent[name] = f"failed: {error}"
            return
        print(f"== {self._numbered(name)}", file=sys.stderr, flush=True)
        path = self.folder / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_dict(self.study[name]))
        deterministic = self.study[name].deterministic
        slot = min((slot for slot in self.slots if slot.run is None), key=lambda slot: not slot.suits(deterministic))
        self.tokenizer_before[name] = _time_of(self._tokenizer(name))
        slot.start(name, self.arguments(path, self.folder / name), deterministic)

    def _numbered(self, name: str) -> str:
        return f"{name} ({1 + list(self.study).index(name)} of {len(self.study)})"

    def collect(self, interrupted: bool) -> None:
        """Note which runs have ended, and how; wait a moment if none has."""
        ended, _, _ = select.select(self.running, [], [], POLL_SECONDS)
        for slot in ended:
            name, (code, reason) = slot.run, slot.outcome()
            if code == 0:
                self.complete.add(name)
            elif code == RUN_ME_AGAIN and not interrupted:
                raise Interrupted(f"{name} was stopped; the same command goes on from there")
            elif not interrupted:
                self.absent[name] = f"failed: {reason}"

    def stop(self) -> None:
        """Have what still runs save its last step, and wait until it has."""
        for slot in self.slots:
            slot.stop()
        for slot in self.slots:
            slot.close()


def _time_of(path: Path) -> int | None:
    """When the file was written, in nanoseconds; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append themselves to, where this is the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
