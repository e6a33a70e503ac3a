"""What the verbs share: parsing a command line, the state of JAX, and how a user's mistake ends.

@verb
def main(argv): ...

if __name__ == "__main__":
    main()
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import absl.logging
from ml_collections import ConfigDict

from t5lite.config import base_config, load_json, override, read_config
from t5lite.data.cache import cache_dir
from t5lite.errors import UserError, clean_exit
from t5lite.objectives.catalogue import unused_fields


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see python -m t5lite.{self.prog} --help")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for the verb `name`, whose mistakes are UserErrors."""
    return _Parser(prog=name, description=description, allow_abbrev=False)


def verb(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """A verb's main: UserErrors end in one line and exit code 2, other libraries' chatter is silenced."""

    @functools.wraps(function)
    def main(argv: Sequence[str] | None = None) -> None:
        absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs pages of what it then raises
        with clean_exit():
            function(sys.argv[1:] if argv is None else argv)

    return main


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """The verb's own arguments, and the config of `--config FILE[:…]` with its overrides."""
    parser.add_argument("--config", required=True, help="FILE.py[:key=value,…]; --config.a.b=value overrides a field")
    arguments, rest = parser.parse_known_args(argv)
    config = override(read_config(arguments.config), rest)
    fields = {**config.objective.to_dict(), "architecture": config.model.architecture}
    for name in unused_fields(fields, base_config().objective.to_dict()):
        print(f"note: config.objective.{name}={fields[name]} changes nothing in {fields['name']}", file=sys.stderr)
    return arguments, config


def parse_with_workdir(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """The verb's own arguments, and the config of the run at --checkpoint (or --workdir) with its overrides."""
    group = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--checkpoint", "--workdir"):
        group.add_argument(flag, dest="workdir", type=Path, help="the workdir of a run")
    arguments, rest = parser.parse_known_args(argv)
    return arguments, override(load_json(arguments.workdir / "config.json"), rest)


def add_which_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The flags --step and --average of a verb that reads a run."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--step", help='the checkpoint of this step, or "best"; default: the newest')
    group.add_argument("--average", type=_positive, default=1, metavar="N", help="the mean of the newest N checkpoints")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, is {text!r}")
    return int(text)


def start_jax(deterministic: bool = False) -> None:
    """Set JAX up before its first use: compiled programs are kept across runs, and GPUs repeat themselves if asked."""
    if deterministic:
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
