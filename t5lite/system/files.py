"""Write a file completely or not at all, read a file that may hold or be anything, and check its format number."""

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.system.errors import UserError

FORMAT = 1  # of workdirs and checkpoints; raised when an older t5lite would misread a new one
LARGEST = 1 << 30  # bytes of a file that is read at once
NUMBER = (int, float, None)  # in JSON, where null stands for a number that is not finite


def only_files(name: str, flags: int) -> int:
    """Open a file, as an `opener` for `open`. It opens no pipe, device or folder, and so never waits.

    Raises UserError for one of these, also if it replaced a file that was there before.
    """
    number = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"cannot read {name}: it is a folder, a pipe or a device; give a file")
    return number


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes. Raises OSError, and UserError for what is not a file or over 1 GiB."""
    with open(path, "rb", opener=only_files) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise UserError(f"cannot read {path}: {size:,} bytes are too many for what it should be")
        return file.read(LARGEST)


def read_json(path: Path, way_out: str = "restore it", shape: Any = dict) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no such file.

    Raises UserError if the file cannot be read. Raises UserError, ending in `way_out`, if it holds anything else or
    does not match `shape` (see `has_shape`).
    """
    try:
        value = json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); {way_out}")
    if not has_shape(value, shape):
        raise UserError(f"{path} is damaged (it does not hold what it should); {way_out}")
    return value


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a JSON value matches `shape`.

    int               a value of this type; True is not an int
    (int, None)       a value that matches one of these
    [str]             a list of such values
    {"step": int}     an object with these fields and any others; a missing field counts as None
    {str: int}        an object with any fields, whose values all match
    """
    if isinstance(shape, tuple):
        return any(has_shape(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(has_shape(item, shape[str]) for item in value.values())
        return all(has_shape(value.get(name), each) for name, each in shape.items())
    if shape is None:
        return value is None
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


def check_format(number: Any, where: str) -> None:
    """Raise UserError if `number`, the format of what stands at `where`, is that of a newer t5lite."""
    if not isinstance(number, int) or number > FORMAT:
        raise UserError(
            f"{where} has format {number}, made by a newer t5lite; this one reads up to {FORMAT}: update it"
        )


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by one rename. Raises UserError if it cannot be written; the old file then stays.

    The content is on the disk before it gets its name. So a machine that loses its power leaves no empty file.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path, "what stood there before is unharmed"):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, consolation: str) -> Iterator[None]:
    """Turn an OSError of the block, from a full or read-only disk, into a UserError. consolation: its last words."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {consolation}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON. A number that is not finite becomes null, because JSON cannot hold it."""
    write_atomically(path, json.dumps(finite(value), indent=2) + "\n")


def finite(value: Any) -> Any:
    """Return `value` with every float that is not finite replaced by None. Tuples become lists."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
