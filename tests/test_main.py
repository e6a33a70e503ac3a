"""The command t5lite without a verb, and the package that `pip install .` builds."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from t5lite import __main__ as command

ROOT = Path(__file__).parents[1]


def _run(*arguments):
    return subprocess.run([sys.executable, "-m", "t5lite", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_verb_is_listed_with_its_summary():
    modules = {path.stem for path in (ROOT / "t5lite").glob("*.py") if "\n@cli.verb\n" in path.read_text()}
    assert set(command.VERBS) == modules
    process = _run()
    assert process.returncode == 0 and not process.stderr
    for verb in command.VERBS:
        (line,) = [line for line in process.stdout.splitlines() if line.split()[:1] == [verb]]
        assert len(line.split()) > 5, line


def test_a_verb_runs_with_its_own_arguments():
    process = _run("compare", "--help")
    assert process.returncode == 0 and "--base" in process.stdout


def test_an_unknown_verb_is_an_error_in_one_line():
    process = _run("trian")
    assert process.returncode == 2 and process.stderr == "t5lite: there is no verb 'trian'; did you mean 'train'?\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(copy of the tree in which a wheel was built, path of the wheel)."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "t5lite", tree / "t5lite", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, tree], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return tree, zipfile.ZipFile(wheel)


def test_the_wheel_asks_for_what_requirements_name_and_brings_the_command(built):
    _, wheel = built
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    facts = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    always = [each for each in facts.get_all("Requires-Dist") if "extra ==" not in each]
    asked = {re.match(r"[\w-]+", each)[0].lower().replace("_", "-") for each in always}
    lines = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert asked == {line.lower().replace("_", "-") for line in lines}
    assert "t5lite = t5lite.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "t5lite").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_building_leaves_nothing_in_the_tree(built):
    tree, _ = built
    names = {path.name for path in tree.iterdir()}
    assert names == {"pyproject.toml", "requirements.txt", "README.md", "LICENSE", "t5lite"}
    assert not [path for path in tree.rglob("*") if path.name in ("build", "dist") or path.suffix == ".egg-info"]
