"""Writing a file whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

from t5lite.errors import UserError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by one rename. Raises UserError where it cannot be written; what stood there then stays."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; what stood there before is unharmed") from error


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
