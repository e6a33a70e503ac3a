"""Writing a file whole or not at all, and which format it has."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.errors import UserError

FORMAT = 1  # of workdirs and checkpoints: raised when they change so that an older t5lite would misread them


def check_format(found: Any, where: str) -> None:
    """Refuse what a newer t5lite wrote at `where`."""
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(f"{where} has format {found}, made by a newer t5lite; this one reads up to {FORMAT}: update it")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by one rename. Raises UserError where it cannot be written; what stood there then stays."""
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path, "what stood there before is unharmed"):
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path, consolation: str) -> Iterator[None]:
    """Turn what a full disk, or one that may not be written, does to the block into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {consolation}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a number that is not finite becomes null, which JSON can hold."""
    write_atomically(path, json.dumps(finite(value), indent=2) + "\n")


def finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
