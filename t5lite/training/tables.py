r"""Everything that is set per parameter is a small table of (regex, value), read from the top: the first match wins.

A parameter's path is its keys joined by '/', such as decoder/layers/mlp/gate/kernel. A pattern must match the whole
path (`re.fullmatch`), so a row says how far it reaches, and a pattern that is too narrow is an error, not a guess:

    (r".*/scale", 0.0),
    (r"(encoder|decoder)/relative_bias/embedding", 0.0),
    (r".*", 1.0),
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from t5lite.errors import UserError

Table = Sequence[tuple[str, Any]]

_STACKED = re.compile(r"(.*/)?layers/.*")


def path_of(keypath: tuple) -> str:
    """The '/'-joined path of a JAX key path: dict keys, attribute names and positions alike."""
    return jax.tree_util.keystr(keypath, simple=True, separator="/")


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """All (path, leaf) of `tree`, sorted by path."""
    return sorted(((path_of(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)), key=lambda item: item[0])


def is_stacked(path: str) -> bool:
    """Whether the parameter's first axis counts layers: it lies under a key `layers`."""
    return _STACKED.fullmatch(path) is not None


def _compile(table: Table, what: str) -> list[tuple[re.Pattern, Any]]:
    rows = []
    for row in table:
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"{what}: each row must be a pair (pattern, value), got {row!r}")
        try:
            rows.append((re.compile(row[0]), row[1]))
        except re.error as error:
            raise UserError(f"{what}: {row[0]!r} is not a valid regular expression: {error}") from error
    return rows


def match_table(table: Table, tree: Any, what: str, *, allow_unused: bool = False) -> Any:
    """A tree like `tree` that holds, for each leaf, the value of the first row whose pattern matches its whole path.

    `what` names the table in errors, as the user knows it ("optimizer.rate_multipliers"). `allow_unused` is for
    defaults that serve several architectures. Raises UserError for a leaf that no row covers, for a row that matches
    no leaf (rows that earlier ones overrule are fine), and for a row that is no (regex, value).
    """
    rows = _compile(table, what)
    paths = [path for path, _ in flatten_with_paths(tree)]
    for path in paths:
        if not any(pattern.fullmatch(path) for pattern, _ in rows):
            raise UserError(f"{what}: no row covers the parameter {path!r}; add one, or a last row '.*' for the rest")
    for pattern, _ in rows:
        if allow_unused or any(map(pattern.fullmatch, paths)):
            continue
        partly = next(filter(pattern.search, paths), None)
        hint = f"a pattern must match the whole path, such as {partly!r}" if partly else f"paths look like {paths[:1]}"
        raise UserError(f"{what}: the row {pattern.pattern!r} matches no parameter; {hint}")
    first = {path: next(value for pattern, value in rows if pattern.fullmatch(path)) for path in paths}
    return jax.tree_util.tree_map_with_path(lambda keys, _: first[path_of(keys)], tree)


def keep(tree: Any, kept: Any) -> Any:
    """`tree` with None, which JAX counts as no leaf, where the bool of the tree `kept` is False."""
    return jax.tree.map(lambda is_kept, leaf: leaf if is_kept else None, kept, tree)


def fill(tree: Any, rest: Any) -> Any:
    """`tree` with the leaves of `rest`, a tree like it, where `tree` has None."""
    return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, tree, rest, is_leaf=lambda x: x is None)


def is_there(tree: Any) -> Any:
    """A tree of bools: False where `tree` has None."""
    return jax.tree.map(lambda leaf: leaf is not None, tree, is_leaf=lambda x: x is None)
