"""Overrides of a config on the command line: `--config.a.b=value` sets a field of the config from the file.

    override(read_config("configs/tiny.py"), ["--config.budget.minutes=5"])

A field on the command line replaces the file's value. Some fields also replace other fields with the same role:

    budget.minutes               replaces the file's budget in any unit
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
    """Apply `--config.a.b=value` arguments to `config`. `=None` clears an optional field after other fields are set.

    Raises UserError for an unknown field and for a value of another type.
    """
    cleared, argv = [], ["t5lite"]
    for argument in arguments:
        if PREFIX.match(argument):
            field, _, value = PREFIX.sub("", argument).partition("=")
            is_of_member = _add_member_field(config, field)
            _check_path(config, field)
            if value == "None" and (is_of_member or lookup_field(base_config(), field, missing="") is None):
                cleared.append(field)
                continue
        argv.append(argument)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        unknown_arguments = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if unknown_arguments:
        raise UserError(f"unexpected argument {unknown_arguments[0]!r}; leave it out, or write --config.FIELD=VALUE")
    for field in cleared:
        set_field(config, field, None)
    _clear_replaced_fields(config, [field for field in given_fields(arguments) if field not in cleared])
    return config


def _check_path(config: ConfigDict, path: str) -> None:
    """Raise UserError if the dotted `path` is not a field of `config`."""
    group, walked = config, "config"
    for part in path.split("."):
        if not isinstance(group, ConfigDict) or part not in group:
            known = list(group) if isinstance(group, ConfigDict) else []
            raise UserError(f"unknown config field {walked}.{part}; {nearest(part, known)}")
        group, walked = group[part], f"{walked}.{part}"
    if isinstance(group, ConfigDict):
        raise UserError(f"{walked} is a group of fields; set one of them: {', '.join(group) or 'choose a name'}")


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
    _check_member_path(known, f"config.{group}.mixture.{name}", field)
    mixture = lookup_field(config, group).mixture
    if isinstance(mixture.get(name, ConfigDict()), ConfigDict):
        with mixture.unlocked():
            _add_unset_field(mixture, known, [name, *field.split(".")], field)
    return True


def _check_member_path(known: ConfigDict, where: str, field: str) -> None:
    first, _, rest = field.partition(".")
    if first not in known:
        raise UserError(f"unknown config field {where}.{first}; {nearest(first, known)}")
    if isinstance(known[first], ConfigDict):
        if not rest:
            raise UserError(f"{where}.{first} is a group of fields; set one of them: {', '.join(known[first])}")
        _check_member_path(known[first], f"{where}.{first}", rest)
    elif rest:
        raise UserError(f"unknown config field {where}.{field}; {where}.{first} is not a group of fields")


def _add_unset_field(group: ConfigDict, known: ConfigDict, parts: Sequence[str], field: str) -> None:
    """Add an unset field at the path `parts` below `group`.

    field: the path in `known` of the field with the same type.
    """
    *folders, last = parts
    for part in folders:
        if not isinstance(group.get(part), ConfigDict):
            group[part] = ConfigDict()
        group = group[part]
    group_path, _, name = field.rpartition(".")
    if last in group:
        del group[last]  # the present value may have a wrong type, such as int for a float field
    group[last] = config_dict.placeholder((lookup_field(known, group_path) if group_path else known).get_type(name))


def _clear_replaced_fields(config: ConfigDict, given: Iterable[str]) -> None:
    """Clear the fields of the file that the `given` fields replace."""
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
