"""Overrides of a config on the command line: `--config.a.b=value` sets a field of the config that the file made.

    override(read_config("configs/tiny.py"), ["--config.budget.minutes=5"])

A given field replaces the file's value, and also other fields that have the same role:

    budget.minutes               replaces the file's budget, in whatever unit
    data.train.mixture.NAME.…    replaces the file's data.train.source; a new NAME joins the members in the file
    data.train.source            replaces the file's mixture
"""

import keyword
import re
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from t5lite.config import base_config, lookup_field, member_fields, set_field
from t5lite.system.errors import UserError, nearest

PREFIX = re.compile("^--?config[.]")
MEMBER = re.compile(r"(data[.]train|objective)[.]mixture[.]([^.]+)[.](.+)")


def given_fields(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the dotted paths of the fields that `arguments` set: ("model.d_model",) for --config.model.d_model=64."""
    named = (argument.partition("=")[0] for argument in arguments if PREFIX.match(argument))
    return tuple(PREFIX.sub("", name) for name in named)


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Apply `--config.a.b=value` arguments to `config`. `=None` clears an optional field, after the others are set.

    Raises UserError for an unknown field and for a value of another type.
    """
    cleared, argv = [], ["t5lite"]
    for argument in arguments:
        if PREFIX.match(argument):
            field, _, value = PREFIX.sub("", argument).partition("=")
            is_of_member = _add_member_field(config, field)
            _known_path(config, field)
            if value == "None" and (is_of_member or lookup_field(base_config(), field, missing="") is None):
                cleared.append(field)
                continue
        argv.append(argument)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if left:
        raise UserError(f"unexpected argument {left[0]!r}")
    for field in cleared:
        set_field(config, field, None)
    _replace(config, [field for field in given_fields(arguments) if field not in cleared])
    return config


def _known_path(config: ConfigDict, path: str) -> None:
    """Raise UserError where the dotted `path` is not a field of `config`."""
    group, walked = config, "config"
    for part in path.split("."):
        if not isinstance(group, ConfigDict) or part not in group:
            known = list(group) if isinstance(group, ConfigDict) else []
            raise UserError(f"unknown config field {walked}.{part}; {nearest(part, known)}")
        group, walked = group[part], f"{walked}.{part}"
    if isinstance(group, ConfigDict):
        raise UserError(f"{walked} is a group of fields; set one of them: {', '.join(group) or 'by a name of yours'}")


def _add_member_field(config: ConfigDict, path: str) -> bool:
    """Return whether `path` is a field of a member of a mixture. If so, add it to `config`, unset and with its type."""
    match = MEMBER.fullmatch(path)
    if match is None:
        return False
    group, name, field = match.groups()
    if not name.isidentifier() or keyword.iskeyword(name) or hasattr(ConfigDict, name):
        raise UserError(
            f"config.{group}.mixture.{name}: {name!r} cannot be a member's name on the command line; take letters, "
            f"digits and _, such as {re.sub('[^0-9A-Za-z]', '_', name)}_text"
        )
    known = member_fields(group)
    _known_member_path(known, f"config.{group}.mixture.{name}", field)
    mixture = lookup_field(config, group).mixture
    if isinstance(mixture.get(name, ConfigDict()), ConfigDict):
        with mixture.unlocked():
            _add(mixture, known, [name, *field.split(".")], field)
    return True


def _known_member_path(known: ConfigDict, where: str, field: str) -> None:
    first, _, rest = field.partition(".")
    if first not in known:
        raise UserError(f"unknown config field {where}.{first}; {nearest(first, known)}")
    if isinstance(known[first], ConfigDict):
        if not rest:
            raise UserError(f"{where}.{first} is a group of fields; set one of them: {', '.join(known[first])}")
        _known_member_path(known[first], f"{where}.{first}", rest)
    elif rest:
        raise UserError(f"unknown config field {where}.{field}; {where}.{first} is no group of fields")


def _add(group: ConfigDict, known: ConfigDict, parts: Sequence[str], field: str) -> None:
    """Put an unset field at the path `parts` below `group`.

    field: the field's path in `known`, which has its type.
    """
    *folders, last = parts
    for part in folders:
        if not isinstance(group.get(part), ConfigDict):
            group[part] = ConfigDict()
        group = group[part]
    of_field, _, name = field.rpartition(".")
    if last in group:
        del group[last]  # its type may be wrong, such as an int where the field is a float
    group[last] = config_dict.placeholder((lookup_field(known, of_field) if of_field else known).get_type(name))


def _replace(config: ConfigDict, given: Iterable[str]) -> None:
    """Clear the fields of the file whose role is taken by the `given` fields."""
    given = set(given)
    if any(field.startswith("budget.") for field in given):
        for name in config.budget:
            if f"budget.{name}" not in given:
                config.budget[name] = None
    train = config.data.train
    is_mixed = any(field.startswith("data.train.mixture.") for field in given)
    if is_mixed and "data.train.source" not in given:
        train.source = None
        if "data.train.split" not in given:
            train.split = None
    if "data.train.source" in given and not is_mixed:
        with train.unlocked():
            train.mixture = ConfigDict()
