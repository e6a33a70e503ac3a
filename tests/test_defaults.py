"""config.py is the one place where a field of a run has its default."""

import ast
import dataclasses
from pathlib import Path

import pytest

from t5lite.config import base_config, flatten_fields, to_dict
from t5lite.model.config import ModelConfig

PACKAGE = Path(__file__).parents[1] / "t5lite"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "config.py"]
FIELDS = {path.rsplit(".", 1)[-1] for path in flatten_fields(to_dict(base_config()))}
GROUPS = {name: set(group) for name, group in base_config().items() if hasattr(group, "keys") and len(group) > 3}
# Words that also name other things than a field: a verb's argument, a column, whether dropout is off, whether text of
# special tokens is read as these, what turns a loss's part off, answers generated alone, the dtype of written weights.
OTHER_THINGS = {
    "seed", "limit", "tensor", "data", "deterministic", "split", "specials", "tokens", "flops", "labels",
    "segments", "prefix_attention", "max_new_tokens", "dtype", "dropout", "label_smoothing", "z_loss", "r_drop",
}  # fmt: skip


def literal_defaults(tree: ast.AST) -> list[tuple[str, str]]:
    """(name, default) of the fields of classes and the arguments of functions whose default is written out."""
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            pairs += [(item.target.id, item.value) for item in node.body
                      if isinstance(item, ast.AnnAssign) and item.value is not None]  # fmt: skip
        elif isinstance(node, ast.FunctionDef | ast.Lambda):
            given, defaults = [*node.args.posonlyargs, *node.args.args], node.args.defaults
            pairs += [(a.arg, d) for a, d in zip(given[len(given) - len(defaults) :], defaults, strict=True)]
            pairs += [(a.arg, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d]
    return [(name, ast.unparse(value)) for name, value in pairs
            if isinstance(value, ast.Constant | ast.Tuple | ast.UnaryOp) and ast.unparse(value) != "None"]  # fmt: skip


def copied_groups(tree: ast.Module) -> list[str]:
    """Groups of the config of which a module has a table of values under the same names."""
    tables = [
        {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
    ]
    return [name for name, fields in GROUPS.items() if any(fields <= table for table in tables)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_default_stands_twice(path):
    tree = ast.parse(path.read_text())
    twice = [f"{name}={value}" for name, value in literal_defaults(tree) if name in FIELDS - OTHER_THINGS]
    assert not twice and not copied_groups(tree), f"{path}: take these from base_config()"


def test_a_second_default_is_noticed():
    tree = ast.parse("class Settings:\n    clip_norm: float = 0.0\ndef f(x, microbatches=1, *, norm='rms'): pass\n"
                     f"FIELDS = {dict.fromkeys(GROUPS['schedule'])}")  # fmt: skip
    assert literal_defaults(tree) == [("clip_norm", "0.0"), ("microbatches", "1"), ("norm", "'rms'")]
    assert copied_groups(tree) == ["schedule"]


def test_a_model_has_the_defaults_of_the_config():
    """But those that follow from the architecture, which the config leaves open."""
    usual, fields = base_config().model, {field.name: field for field in dataclasses.fields(ModelConfig)}
    assert set(usual) - set(fields) == {"architecture"} and set(fields) - set(usual) == {"heads"}
    for name, field in fields.items():
        assert name == "heads" or field.default in (usual[name], dataclasses.MISSING), name
