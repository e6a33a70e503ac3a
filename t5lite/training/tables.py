r"""Every setting per parameter is a small table of (regex, value), read from the top: the first match wins.

A parameter's path is its keys joined by '/', such as decoder/layers/mlp/gate/kernel. A pattern must match the whole
path (`re.fullmatch`). So each row shows how far it reaches, and a pattern that is too narrow is an error:

    (r".*/scale", 0.0),
    (r"(encoder|decoder)/relative_bias/embedding", 0.0),
    (r".*", 1.0),
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from t5lite.system.errors import UserError

Table = Sequence[tuple[str, Any]]

MAX_PATHS = 40  # the most paths in an error

_STACKED = re.compile(r"(.*/)?layers/.*")
# How other libraries name the parameters of one layer: layers_0/…, layers/3/…, layer.2.…, blocks/1/….
_ONE_LAYER = re.compile(r"(layers?|blocks?|\bh)[_/.\\\[\]()]*(\d|(?<=\\)d)")


def path_of(keypath: tuple) -> str:
    """Return the '/'-joined path of a JAX key path, with dict keys, attribute names and positions written alike."""
    return jax.tree_util.keystr(keypath, simple=True, separator="/")


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return all (path, leaf) of `tree`, sorted by path."""
    return sorted(((path_of(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)), key=lambda item: item[0])


def is_stacked(path: str) -> bool:
    """Return whether the parameter's first axis counts layers: it lies under a key `layers`."""
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
    """Return a tree like `tree`, with the value of the first row that matches the whole path of each leaf.

    Raises UserError for a leaf that no row covers, for a row that matches no leaf, and for a row that is not a pair
    (regex, value). A row that matches only leaves of earlier rows is no error.

    Args:
        what: the name of the table in errors, as the user knows it ("optimizer.rate_multipliers").
        allow_unused: allow rows that match no leaf, for defaults that serve several architectures.
    """
    rows = _compile(table, what)
    paths = [path for path, _ in flatten_with_paths(tree)]
    for path in paths:
        if not any(pattern.fullmatch(path) for pattern, _ in rows):
            raise UserError(f"{what}: no row covers the parameter {path!r}; add one, or a last row '.*' for the rest")
    for pattern, _ in rows:
        if not allow_unused and not any(map(pattern.fullmatch, paths)):
            raise UserError(_describe_unused_row(pattern, tree, what))
    first = {path: next(value for pattern, value in rows if pattern.fullmatch(path)) for path in paths}
    return jax.tree_util.tree_map_with_path(lambda keys, _: first[path_of(keys)], tree)


def _describe_unused_row(pattern: re.Pattern, tree: Any, what: str) -> str:
    """Return the error for a row that matches no parameter of `tree`: the likely reason, and the existing paths."""
    text, leaves = pattern.pattern, flatten_with_paths(tree)
    parts = [f"{what}: the row {text!r} matches no parameter"]
    if partly := [path for path, _ in leaves if pattern.search(path)]:
        parts.append(f"a pattern must match the whole path, such as {_sort_by_similarity(text, partly)[0]!r}")
    if stacked := list(_describe_stacks(leaves)):
        wrong = "no path holds the number of a layer: " if _ONE_LAYER.search(text) else ""
        parts.append(
            f"{wrong}layers are stacked, so that one path holds a parameter of them all ({'; '.join(stacked)})"
        )
    paths = _sort_by_similarity(text, [path for path, _ in leaves])
    more = f" and {len(paths) - MAX_PATHS} more" if len(paths) > MAX_PATHS else ""
    parts.append(f"the paths, the nearest first: {', '.join(paths[:MAX_PATHS])}{more}")
    return "; ".join(parts)


def _sort_by_similarity(text: str, paths: Sequence[str]) -> list[str]:
    """Return `paths`, those first that are most similar to `text`. Equally similar ones keep their order."""
    plain = re.sub(r"[\\^$.*+?()\[\]{}|]+|\d+", "", text)
    return sorted(paths, key=lambda path: -difflib.SequenceMatcher(None, plain, path, autojunk=False).ratio())


def _describe_stacks(leaves: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """Yield, for each stack of layers, a sentence that says how many layers one of its paths holds."""
    sizes = {path.partition("layers/")[0]: getattr(leaf, "shape", ()) for path, leaf in leaves if is_stacked(path)}
    for before, shape in sizes.items():
        yield f"a path under {before}layers/ holds all {shape[0] if shape else 'its'} layers"


def keep_leaves(tree: Any, kept: Any) -> Any:
    """Return `tree` with None, which JAX does not count as a leaf, where the tree of bools `kept` is False."""
    return jax.tree.map(lambda is_kept, leaf: leaf if is_kept else None, kept, tree)


def fill(tree: Any, rest: Any) -> Any:
    """Return `tree` with the leaves of `rest`, a tree of the same structure, where `tree` has None."""
    return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, tree, rest, is_leaf=lambda x: x is None)


def leaf_mask(tree: Any) -> Any:
    """Return a tree of bools: False where `tree` has None."""
    return jax.tree.map(lambda leaf: leaf is not None, tree, is_leaf=lambda x: x is None)
