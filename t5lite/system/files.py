"""Write files completely or not at all, read files of unknown content safely, and check format numbers."""

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.system.errors import UserError

FORMAT = 1  # the format of workdirs and checkpoints; increased when an older t5lite would misread the new format
LARGEST = 1 << 30  # bytes; `read_bytes` refuses a larger file
NUMBER = (int, float, None)  # the shape of a number in JSON. null stands for a number that is not finite


def open_regular_file(name: str, flags: int) -> int:
    """Open a file and return its descriptor; an `opener` for `open`.

    Raises UserError for a pipe, a device or a folder, so it never waits. It checks the file after opening, so a file
    that is replaced at the last moment is refused too.
    """
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"cannot read {name}: it is a folder, a pipe or a device; give a file")
    return descriptor


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises OSError. Raises UserError for a folder, a pipe, a device, or a file of more than 1 GiB.
    """
    with open(path, "rb", opener=open_regular_file) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise UserError(
                f"cannot read {path}: {size:,} bytes are too many, at most {LARGEST:,} are read; correct the path"
            )
        return file.read(LARGEST)


def read_json(path: Path, way_out: str = "restore it", shape: Any = dict) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no such file.

    Raises UserError if the file cannot be read, if it does not hold a JSON object, or if the object does not match
    `shape` (see `has_shape`). way_out: the end of the message about a damaged file.
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
        raise UserError(f"{path} is damaged (a field is missing or has a wrong type); {way_out}")
    return value


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a JSON value matches `shape`.

    int               a value of this type; True is not an int
    (int, None)       a value that matches at least one of the shapes
    [str]             a list; each item matches the shape
    {"step": int}     an object; each named field matches its shape, and a missing field counts as None
    {str: int}        an object with any fields; each value matches the shape
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
    """Raise UserError unless `number`, the format of the file or folder `where`, is an integer up to FORMAT."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"{where} is damaged: its format should be a whole number, but is {number!r}; restore it")
    if number > FORMAT:
        raise UserError(
            f"{where} has format {number}, made by a newer t5lite; this one reads formats up to {FORMAT}: update t5lite"
        )


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file `path` by one rename. Raises UserError if it cannot be written; then nothing is replaced.

    The content is on the disk before the rename. So a machine that loses power leaves no empty file.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with explain_write_errors(path, "nothing was replaced"):
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
def explain_write_errors(path: Path, ending: str) -> Iterator[None]:
    """Turn an OSError in the block, such as a full disk, into a UserError. ending: the end of its message."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {ending}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON. A number that is not finite becomes null, because JSON cannot hold it."""
    write_atomically(path, json.dumps(replace_non_finite(value), indent=2) + "\n")


def replace_non_finite(value: Any) -> Any:
    """Return `value` with every float that is not finite replaced by None. Tuples become lists."""
    if isinstance(value, dict):
        return {name: replace_non_finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
