"""The pictures of a task as independent SVG documents."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from t5lite.reporting.figures import figures
from t5lite.reporting.report import write_report
from tests.reporting.fakes import write_seeds

SVG = "{http://www.w3.org/2000/svg}"
LINES = [{"step": step, "split": "validation", "loss": 8 - step / 20} for step in range(0, 101, 25)]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = write_seeds(folder, "scratch", [3.0, 3.2, 3.1], lines=LINES)
    runs += write_seeds(folder, "<wide>", [2.0, 2.1, 2.2], lines=LINES, fields={"model.d_model": 512})
    return write_report(runs, folder / "out", "t").tasks[0]


def test_each_picture_is_a_document_with_its_title_and_all_of_its_parts(task):
    values, curves = map(ElementTree.fromstring, figures(task, "a"))
    for figure, title, parts in ((values, "loss on validation", 2), (curves, "loss on validation during training", 1)):
        texts = ["".join(text.itertext()) for text in figure.iter(f"{SVG}text")]
        assert texts[0] == title and {"scratch", "<wide>"} <= set(texts)
        inside = figure.findall(f"{SVG}svg")
        assert len(inside) == parts
        bottoms = [0.0] + [float(each.get("y")) + float(each.get("height")) for each in inside]
        assert all(float(each.get("y")) > above for each, above in zip(inside, bottoms, strict=False))
        assert bottoms[-1] < float(figure.get("viewBox").split()[3])
    assert "difference to scratch" in ElementTree.tostring(values, "unicode")


def test_a_document_needs_no_page(task):
    for drawn in figures(task, "a"):
        assert "var(" not in drawn and "#1f2429" in drawn and 'fill="white"' in drawn


def test_ids_differ_by_name(task):
    ids = [set(re.findall(r' id="([^"]+)"', "".join(figures(task, name)))) for name in ("a", "b")]
    assert ids[0] and not ids[0] & ids[1]
