"""The cache folder. Each thing in it is built once, in a folder named by a fingerprint of what it depends on.

A folder appears by one rename, complete or not at all. So a kill, a full disk or two builders at once leave nothing
half-written. Before that the folder is called .NAME.HOST.xxxxxxxx, and its builder holds a lock on it (flock). If
another process of this host can lock it, its builder is dead. Such a folder is removed when something is next built
beside it. Where folders cannot be locked, as on NFS, the remains of a kill stay.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.system.errors import UserError


def cache_dir() -> Path:
    """Return $T5LITE_CACHE, or t5lite/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t5lite"
    return Path(os.environ.get("T5LITE_CACHE") or default).absolute()


def fingerprint(facts: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `facts`, any JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def atomic_folder(final: Path, way_out: str = "set T5LITE_CACHE elsewhere") -> Iterator[Path]:
    """Give a temporary folder that becomes `final` if the block succeeds, and is removed if the block fails.

    If another process made `final` meanwhile, that folder stays: equal fingerprints mean equal contents. Raises
    UserError, ending in `way_out`, if the disk is full or the place cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        temporary, lock = _locked_folder(final)
    except OSError as error:
        raise UserError(f"cannot write under {final.parent}: {error.strerror}; {way_out}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        with contextlib.suppress(OSError):
            temporary.rename(final)
        if not final.is_dir():
            raise UserError(f"cannot rename {temporary} to {final}")
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError | FileExistsError):
            raise
        raise UserError(f"cannot write {final}: {error.strerror}; free some space or {way_out}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked_folder(final: Path) -> tuple[Path, int]:
    """Make a temporary folder beside `final`. Return it and the descriptor that holds its lock."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.{socket.gethostname()}.", dir=final.parent))
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # removed by _sweep of another process before it was locked
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _sweep(folder: Path) -> None:
    """Remove what dead builders of this host left in `folder`."""
    for left in folder.glob(f".*.{socket.gethostname()}.*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if its builder lives
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
