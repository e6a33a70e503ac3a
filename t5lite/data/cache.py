"""The cache folder: things built once from a fingerprint of what they depend on, each in a folder of its own.

A folder appears by one rename, complete or not at all, so that a kill, a full disk or two builders at once leave
nothing half-written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.errors import UserError


def cache_dir() -> Path:
    """$T5LITE_CACHE, or t5lite/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t5lite"
    return Path(os.environ.get("T5LITE_CACHE") or default).absolute()


def fingerprint(facts: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `facts`, any JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and is removed when it does not.

    Where another process made `final` meanwhile, its folder stays: equal fingerprints mean equal contents.
    Raises UserError where the disk is full or the place cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise UserError(f"cannot write under {final.parent}: {error.strerror}; set T5LITE_CACHE elsewhere") from error
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
        raise UserError(f"cannot write {final}: {error.strerror}; free some space or set T5LITE_CACHE") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
