"""Find the files that a pattern names."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from t5lite.data.readers import find_format
from t5lite.system.errors import UserError


def find_files(patterns: str) -> tuple[Path, ...]:
    """Return the files that comma-separated globs match, sorted: "data/*.txt,more/**/*.jsonl.gz".

    Folders, pipes and devices are left out. Raises UserError for a pattern that matches no file, and for a file with an
    unknown suffix.
    """
    matches: set[str] = set()
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        try:
            expanded = str(Path(pattern).expanduser())
            names = [expanded] if Path(expanded).is_file() else map(str, map(Path, _expand(expanded)))
            names = [name for name in names if Path(name).is_file()]
        except (OSError, RuntimeError, ValueError, re.error) as error:  # a name that is too long, ~user without a home
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot look for {pattern!r}: {reason}; correct the pattern in the source") from error
        if not names:
            hint = "; a comma separates patterns, so write ? for a comma in a name" if "," in patterns else ""
            raise UserError(
                f"no file matches {pattern!r}: {_describe_nearest_folder(expanded)}; correct the pattern in the "
                f"source{hint}"
            )
        matches.update(names)
    if not matches:
        raise UserError("a files: source needs a pattern, such as files:data/*.txt")
    paths = tuple(map(Path, sorted(matches)))
    for path in paths:
        find_format(path)
    return paths


def _expand(pattern: str) -> Iterator[str]:
    """Yield the paths that a glob matches.

    Unlike the glob module, `**` enters no folder twice, because links may form circles.
    """
    root_pattern, *rest = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not rest:
        yield from glob.iglob(pattern)
        return
    for root in glob.iglob(root_pattern) if root_pattern else [""]:
        for folder in _walk_folders(root):
            yield from _expand(os.path.join(glob.escape(folder), rest[0] or "*"))


def _walk_folders(root: str) -> Iterator[str]:
    """Yield `root` and each folder below it once, even if links give it several names. Leave out hidden folders."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, _ in os.walk(root or ".", followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder


def _describe_nearest_folder(pattern: str) -> str:
    """Say in words which parent folder of the pattern exists, or that the pattern is a folder, pipe or device."""
    path = Path(pattern)
    if path.exists():
        return f"it is a folder; name its files, as {path / '*.txt'}" if path.is_dir() else "it is a pipe or device"
    while glob.has_magic(str(path)) or not path.exists():
        if path == path.parent:
            break
        path = path.parent
    if path.is_dir():
        return f"the folder {path.absolute()} exists, but nothing in it matches"
    return f"{path.absolute()} is not a folder"
