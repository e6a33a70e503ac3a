r"""Tables of (regex, value) for settings that differ between parameters. The first row that matches a parameter wins.

A parameter's path is its keys joined by '/', such as decoder/layers/mlp/gate/kernel. A pattern must match the whole
path (`re.fullmatch`). A row that matches no parameter is an error, unless the caller allows it. A parameter that no row
matches is always an error:

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

MAX_PATHS = 40  # an error lists at most this many paths

_STACKED = re.compile(r"(.*/)?layers/.*")
# Names that other libraries give the parameters of one layer: layers_0/…, layers/3/…, layer.2.…, blocks/1/…. The text
# is itself a pattern, so `\d` counts as a number.
_ONE_LAYER = re.compile(r"(layers?|blocks?|\bh)[_/.\\\[\]()]*(\d|(?<=\\)d)")


def join_path(keypath: tuple) -> str:
    """Return a JAX key path as text: dict keys, attribute names and indices, joined by '/'."""
    return jax.tree_util.keystr(keypath, simple=True, separator="/")


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return [(path, leaf)] for all leaves of `tree`, sorted by path."""
    return sorted(((join_path(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree)), key=lambda item: item[0])


def is_stacked(path: str) -> bool:
    """Return whether the first axis of the parameter counts layers: whether its path has a key `layers`."""
    return _STACKED.fullmatch(path) is not None


def _compile(table: Table, table_name: str) -> list[tuple[re.Pattern, Any]]:
    rows = []
    for row in table:
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"{table_name}: each row must be a pair (pattern, value), got {row!r}")
        try:
            rows.append((re.compile(row[0]), row[1]))
        except re.error as error:
            raise UserError(f"{table_name}: {row[0]!r} is not a valid regular expression: {error}") from error
    return rows


def match_table(table: Table, tree: Any, table_name: str, *, allow_unused: bool = False) -> Any:
    """Return a tree like `tree`, with the value of the first row that matches the whole path of each leaf.

    Raises UserError for a leaf that no row covers, for a row that matches no leaf, and for a row that is not a pair
    (regex, value). It is no error if earlier rows already match all leaves of a row.

    Args:
        table_name: the name of the table in errors, as the user knows it ("optimizer.rate_multipliers").
        allow_unused: allow rows that match no leaf, for defaults that serve several architectures.
    """
    rows = _compile(table, table_name)
    paths = [path for path, _ in flatten_with_paths(tree)]
    for path in paths:
        if not any(pattern.fullmatch(path) for pattern, _ in rows):
            raise UserError(
                f"{table_name}: no row covers the parameter {path!r}; add one, or a last row '.*' for the rest"
            )
    for pattern, _ in rows:
        if not allow_unused and not any(map(pattern.fullmatch, paths)):
            raise UserError(_describe_unused_row(pattern, tree, table_name))
    first = {path: next(value for pattern, value in rows if pattern.fullmatch(path)) for path in paths}
    return jax.tree_util.tree_map_with_path(lambda keys, _: first[join_path(keys)], tree)


def _describe_unused_row(pattern: re.Pattern, tree: Any, table_name: str) -> str:
    """Return the error for a row that matches no parameter of `tree`: likely reasons, and the existing paths."""
    text, leaves = pattern.pattern, flatten_with_paths(tree)
    parts = [f"{table_name}: the row {text!r} matches no parameter"]
    if partial_matches := [path for path, _ in leaves if pattern.search(path)]:
        example = _sort_by_similarity(text, partial_matches)[0]
        parts.append(f"a pattern must match the whole path, such as {example!r}")
    if stacks := list(_describe_stacks(leaves)):
        mistake = "paths contain no layer numbers: " if _ONE_LAYER.search(text) else ""
        parts.append(
            f"{mistake}layers are stacked, so one path stands for a parameter of all layers ({'; '.join(stacks)})"
        )
    paths = _sort_by_similarity(text, [path for path, _ in leaves])
    more = f" and {len(paths) - MAX_PATHS} more" if len(paths) > MAX_PATHS else ""
    parts.append(f"parameter paths, most similar first: {', '.join(paths[:MAX_PATHS])}{more}")
    return "; ".join(parts)


def _sort_by_similarity(text: str, paths: Sequence[str]) -> list[str]:
    """Return `paths`, sorted by similarity to `text`, most similar first. Equally similar paths keep their order."""
    plain = re.sub(r"[\\^$.*+?()\[\]{}|]+|\d+", "", text)
    return sorted(paths, key=lambda path: -difflib.SequenceMatcher(None, plain, path, autojunk=False).ratio())


def _describe_stacks(leaves: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """Yield, for each stack of layers, a sentence that says for how many layers one path stands."""
    shapes = {path.partition("layers/")[0]: getattr(leaf, "shape", ()) for path, leaf in leaves if is_stacked(path)}
    for prefix, shape in shapes.items():
        yield f"a path under {prefix}layers/ stands for {f'{shape[0]} layers' if shape else 'all layers'}"


def keep_leaves(tree: Any, mask: Any) -> Any:
    """Return `tree` with None in place of each leaf where `mask`, a tree of bools, is False. JAX skips None."""
    return jax.tree.map(lambda is_kept, leaf: leaf if is_kept else None, mask, tree)


def fill(tree: Any, rest: Any) -> Any:
    """Return `tree`, with the leaf of `rest` in place of each None. Both trees have the same structure."""
    return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, tree, rest, is_leaf=lambda x: x is None)


def leaf_mask(tree: Any) -> Any:
    """Return a tree of bools like `tree`: False in place of None, True in place of leaves."""
    return jax.tree.map(lambda leaf: leaf is not None, tree, is_leaf=lambda x: x is None)
