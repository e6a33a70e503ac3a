"""Functions that all verbs share: parse the command line, set JAX up, end the process after a user's mistake.

@verb
def main(argv): ...

if __name__ == "__main__":
    main()
"""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import absl.logging
from ml_collections import ConfigDict

from t5lite.checks import STEPS, in_range
from t5lite.config import base_config, read_config
from t5lite.objectives.catalogue import unused_fields
from t5lite.run.overrides import given_fields, override
from t5lite.system.cache import cache_dir
from t5lite.system.errors import UserError, clean_exit, end_process
from t5lite.system.progress import keep_quiet
from t5lite.system.signals import raise_on_signals


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see python -m t5lite.{self.prog} --help")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for the verb `name`. Mistakes on the command line raise UserError."""
    layout = argparse.RawDescriptionHelpFormatter  # the description is a module's docstring, with commands
    return _Parser(prog=name, description=description, allow_abbrev=False, formatter_class=layout)


def verb(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Return the main function of a verb, which calls `function` and then ends the process.

    A UserError ends the process with one line and exit code 2. SIGTERM and Ctrl-C end it with one line and exit code
    75. The process ends at once, without waiting for its threads. Log messages of other libraries are not shown.
    """

    @functools.wraps(function)
    def main(argv: Sequence[str] | None = None) -> None:
        absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs pages about errors that it also raises
        try:
            with clean_exit(), raise_on_signals():
                function(sys.argv[1:] if argv is None else argv)
        except (Exception, SystemExit) as error:
            if argv is not None:  # called from other code, which owns the process
                raise
            if not isinstance(error, SystemExit):
                sys.excepthook(*sys.exc_info())
            end_process(error.code or 0 if isinstance(error, SystemExit) else 1)

    return main


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """Return (the verb's own arguments, the config of `--config FILE[:…]` with its overrides).

    The arguments have one more attribute, `given`: the fields that the overrides set.
    """
    parser.add_argument("--config", required=True, help="FILE.py[:key=value,…]; --config.a.b=value overrides a field")
    arguments, rest = parser.parse_known_args(argv)
    config, arguments.given = override(read_config(arguments.config), rest), given_fields(rest)
    fields = {**config.objective.to_dict(), "architecture": config.model.architecture}
    for name in unused_fields(fields, base_config().objective.to_dict()):
        print(f"note: config.objective.{name}={fields[name]} changes nothing in {fields['name']}", file=sys.stderr)
    tokenizer_source = config.tokenizer.path or config.init_from
    for name in ("vocab_size", "sample_bytes", "source") if tokenizer_source else ():
        if f"tokenizer.{name}" in arguments.given:
            field = f"config.tokenizer.{name}={config.tokenizer[name]}"
            print(f"note: {field} changes nothing: the tokenizer of {tokenizer_source} is used", file=sys.stderr)
    return arguments, config


def add_checkpoint(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the flag --checkpoint, its other name --workdir, and the flags that choose among a run's checkpoints.

    Returns the group of flags of which exactly one must be given. A verb may add more flags to the group.
    """
    group = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--checkpoint", "--workdir"):
        group.add_argument(flag, dest="checkpoint", help="the workdir of a run, or hf:DIR: released weights")
    add_which_checkpoint(parser)
    return group


def add_which_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the flags --step and --average, for a verb that reads a run."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--step",
        help='use the checkpoint of this step, or "best"; default: the newest, or the step that early stopping keeps',
    )
    count = in_range(int, 1, STEPS)
    group.add_argument("--average", type=count, default=1, metavar="N", help="use the mean of the newest N checkpoints")


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the flag --base, for a verb that writes a report."""
    parser.add_argument(
        "--base",
        action="append",
        metavar="GROUP|TASK=GROUP",
        help="compare all other groups of the task with this group; default: the first group of each task. TASK is a "
        "part of a task's title. Repeat the flag for several bases: each group is then compared with the base that "
        "has the most similar config",
    )


def start_jax(deterministic: bool = False) -> None:
    """Set JAX up before its first use: keep compiled programs for later runs.

    deterministic: make computations on GPUs deterministic.
    """
    if deterministic:
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which several hosts find each other."""
    group = parser.add_argument_group(
        "several hosts",
        "Start the same command on every host. With a TPU pod, Slurm or Open MPI, that is all. Elsewhere set:",
    )
    environment = os.environ.get
    group.add_argument(
        "--coordinator_address",
        metavar="HOST:PORT",
        default=environment("JAX_COORDINATOR_ADDRESS"),
        help="the address of host 0, with a free port; default: $JAX_COORDINATOR_ADDRESS",
    )
    group.add_argument(
        "--num_processes",
        type=int,
        default=environment("JAX_NUM_PROCESSES"),
        help="the number of hosts; default: $JAX_NUM_PROCESSES",
    )
    group.add_argument(
        "--process_id",
        type=int,
        default=environment("JAX_PROCESS_ID"),
        help="the number of this host, from 0; default: $JAX_PROCESS_ID",
    )
    group.add_argument(
        "--heartbeat_timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="if a host does not answer for this long, all other hosts end (default: %(default)g)",
    )


@contextlib.contextmanager
def start_jax_on_hosts(arguments: argparse.Namespace, deterministic: bool = False) -> Iterator[None]:
    """Run `start_jax`, and connect to the hosts that the flags of `add_hosts` or the cluster name.

    Only host 0 prints.
    """
    start_jax(deterministic)
    from t5lite.system.hosts import is_primary
    from t5lite.system.joining import Address, are_several, join_hosts

    if arguments.heartbeat_timeout <= 0:
        raise UserError(f"--heartbeat_timeout={arguments.heartbeat_timeout:g} must be above 0; give a larger number")
    address = Address(arguments.coordinator_address, arguments.num_processes, arguments.process_id)
    if not are_several(address):
        yield
        return
    with join_hosts(address, arguments.heartbeat_timeout), _print_on_one_host(is_primary()):
        yield


@contextlib.contextmanager
def _print_on_one_host(is_here: bool) -> Iterator[None]:
    """Keep standard output on one host only. The other hosts discard their output, and show no progress.

    is_here: whether this host is the one that prints.

    Text that C++ libraries print to standard output, as Gloo does when hosts connect, goes to standard error.
    """
    if not is_here:
        keep_quiet()
    sys.stdout.flush()
    stdout_copy = os.dup(1)
    os.dup2(2, 1)
    with open(stdout_copy if is_here else os.devnull, "w", buffering=1) as stdout, contextlib.redirect_stdout(stdout):
        yield
