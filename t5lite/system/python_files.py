"""Run Python files of the user, such as configs. An error in the file becomes one line with the file and the line."""

import contextlib
import importlib.util
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.system.errors import UserError


def load_function(path: Path, name: str) -> Any:
    """Return the function `name` of the Python file `path`. An error in the file becomes a UserError with its line."""
    if not path.is_file():
        raise UserError(f"there is no config file {path}; correct the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; give a .py file with a function {name}(arg)")
    module = importlib.util.module_from_spec(spec)
    with explain_errors(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f"{path} has no function {name}(arg); define it")
    return getattr(module, name)


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn any error in the code of the config file `path` into a UserError that names the file and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = path if _is_file(error.filename, path) else error.filename or path
        raise UserError(f"{place}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{place}: {_shorten_error(error)}") from error


def _is_file(name: str | None, path: Path) -> bool:
    return name is not None and Path(name).absolute() == path.absolute()


def _shorten_error(error: Exception) -> str:
    """Return the message of `error`. For an unknown field, leave out the config that ml_collections prints."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        near = re.search(r'Did you mean "(\w+)"', text)
        unknown = re.search(r'Key "(\w+)" does not exist', text) or re.fullmatch(r"""["']+(\w+)["']+(\n.*)?""", text)
        if unknown:
            return f"unknown field {unknown[1]}" + (f"; did you mean {near[1]!r}?" if near else "")
    return text if isinstance(error, TypeError | ValueError) and text else f"{type(error).__name__}: {text}"
