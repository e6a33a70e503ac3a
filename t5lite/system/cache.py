"""The cache folder. Each item is built once, in a folder whose name is a fingerprint of everything the item depends on.

A folder gets its name by one rename, after it is complete. So a kill, a full disk or two builders at once leave no
incomplete folder under that name. Before the rename the folder is called .NAME.HOST.xxxxxxxx, and its builder holds a
lock on it (flock). If another process of this host can lock the folder, the builder is dead. The next build in the same
parent folder removes such folders. Where folders cannot be locked, as on NFS, they stay.
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
    """Return the first 16 hexadecimal digits of the SHA-256 of `facts`. facts: any JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def atomic_folder(final: Path, way_out: str = "set T5LITE_CACHE elsewhere") -> Iterator[Path]:
    """Give a temporary folder that becomes `final` if the block succeeds, and is removed if the block fails.

    If another process has made `final` in the meantime, that folder stays: equal fingerprints mean equal contents.
    Raises UserError if the disk is full or the folder cannot be written. way_out: the end of that message.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_folders(final.parent)
        temporary, lock = _make_locked_folder(final)
    except OSError as error:
        raise UserError(f"cannot write in {final.parent}: {error.strerror}; {way_out}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        with contextlib.suppress(OSError):
            temporary.rename(final)
        if not final.is_dir():
            raise UserError(f"cannot rename {temporary} to {final}; {way_out}")
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError | FileExistsError):
            raise
        raise UserError(f"cannot write {final}: {error.strerror}; free some space or {way_out}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _make_locked_folder(final: Path) -> tuple[Path, int]:
    """Make a temporary folder beside `final`. Return it and the descriptor that holds its lock."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.{socket.gethostname()}.", dir=final.parent))
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # another process removed it before it was locked
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _remove_dead_folders(folder: Path) -> None:
    """Remove the temporary folders in `folder` whose builders, on this host, are dead."""
    for temporary in folder.glob(f".*.{socket.gethostname()}.*"):
        with contextlib.suppress(OSError):
            lock = os.open(temporary, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if the builder is alive
                shutil.rmtree(temporary, ignore_errors=True)
            finally:
                os.close(lock)
