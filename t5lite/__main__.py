"""The command t5lite: list the verbs, or run one of them.

t5lite                   list the verbs, as `python -m t5lite` does
t5lite train …           run a verb, as `python -m t5lite.train …` does
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from t5lite.system.errors import UserError, clean_exit, nearest
from t5lite.system.signals import end_on_signals

# In the order in which they are used.
VERBS = ("prepare", "preview", "train", "evaluate", "generate", "study", "compare", "bench", "convert")


def read_summary(verb: str) -> str:
    """Return the first line of a verb's docstring, without the verb's name.

    The module is parsed, not imported, because an import takes seconds.
    """
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    line = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return line.removeprefix(f"{verb.capitalize()}: ")


def list_verbs() -> str:
    """Return the usage, a line for each verb, and how to learn more."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {read_summary(verb)}" for verb in VERBS]
    return "\n".join(
        [
            "usage: t5lite VERB …, or python -m t5lite.VERB …",
            "",
            *lines,
            "",
            "t5lite VERB --help says more, with examples.",
        ]
    )


def _read_version() -> str:
    try:
        return version("t5lite")
    except PackageNotFoundError:
        return "not installed: runs from its folder"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that the first argument names. Without an argument, list the verbs.

    Args:
        argv: the arguments after the name of the command; None: the arguments of the process.
    """
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    with clean_exit():
        if verb in ("", "-h", "--help", "help"):
            print(list_verbs())
            return
        if verb == "--version":
            print(f"t5lite {_read_version()}")
            return
        if verb not in VERBS:
            raise UserError(f"there is no verb {verb!r}; {nearest(verb, VERBS)}")
    end_on_signals()  # until the verb sets its own handlers
    sys.argv = [f"t5lite {verb}", *rest[:-1]]
    importlib.import_module(f"t5lite.{verb}").main()


if __name__ == "__main__":
    main()
