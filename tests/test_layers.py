"""The house's order: imports point down, nothing big is hidden, everything imported is in requirements.txt."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "t5lite"

# From the top down. A module may import from its own layer and from those below it.
LAYERS = (
    ("__main__",),
    ("train", "prepare", "preview", "evaluate", "generate", "study", "compare", "bench", "convert", "cli"),
    ("studies",),
    ("reporting",),
    ("run",),
    ("training",),
    ("decoding",),
    ("interop",),
    ("tasks",),
    ("model",),
    ("objectives",),
    ("data",),
    ("pydocs",),
    ("checks",),
    ("config",),
    ("system",),
)
WITHOUT_DATA = ("training", "decoding", "tasks", "model", "objectives")
FILES = sorted(PACKAGE.rglob("*.py"))


def _layer(module: str) -> int:
    name = module.split(".")[1] if "." in module else ""
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    raise AssertionError(f"{module} stands in no layer: add it to LAYERS")


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from t5lite import cli` imports the module t5lite.cli.
            found |= {f"t5lite.{a.name}" for a in node.names} if node.module == "t5lite" else {node.module}
    return found


def violations(module: str, imports: set[str]) -> list[str]:
    """What `module` imports and must not."""
    own = [name for name in imports if name.startswith("t5lite.")]
    up = [name for name in own if _layer(name) < _layer(module)]
    if module.split(".")[1] in WITHOUT_DATA:
        up += [name for name in own if name.startswith("t5lite.data")]
    return up


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_down(path):
    module = _name(path)
    if module == "t5lite":
        return
    assert not violations(module, _imports(ast.parse(path.read_text())))


def test_every_noun_has_a_room():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *LAYERS[0], *LAYERS[1], "checks", "config"}


def test_an_import_that_points_up_is_noticed():
    assert violations("t5lite.model.layers", {"t5lite.training.step"})
    assert violations("t5lite.training.step", {"t5lite.data.rows"})
    assert not violations("t5lite.training.step", {"t5lite.model.layers"})


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 66, f"{node.name} is too long"


def test_requirements_name_all_that_is_imported():
    packages = {"sentencepiece": "sentencepiece", "absl": "absl-py", "ml_collections": "ml-collections",
                "orbax": "orbax-checkpoint", "sklearn": "scikit-learn",
                "tensorflow_datasets": "tensorflow-datasets"}  # fmt: skip
    required = set(re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    required |= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    required = {name.lower().replace("_", "-") for name in required}
    for path in FILES:
        for name in _imports(ast.parse(path.read_text())):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "t5lite":
                assert packages.get(top, top).lower().replace("_", "-") in required, f"{path.name} imports {top}"


def test_the_package_does_not_need_tensorflow_or_torch():
    for path in FILES:
        tops = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()))}
        assert not tops & {"tensorflow", "torch", "transformers"}, path
