"""The README's table of objectives agrees with the code."""

from pathlib import Path

from t5lite.objectives.catalogue import OBJECTIVES
from t5lite.objectives.table import ABOUT, markdown_table

README = Path(__file__).parents[2] / "README.md"


def test_every_objective_is_described_and_no_other():
    assert set(ABOUT) == set(OBJECTIVES)


def test_the_readme_has_the_table():
    assert markdown_table() in README.read_text(), "paste what `python -m t5lite.objectives.table` prints"
