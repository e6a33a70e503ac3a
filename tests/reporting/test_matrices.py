"""Confusion matrices in the report: which are drawn, what the cells say, and how names and colours are written."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from t5lite.reporting.confusion import find_matrices
from t5lite.reporting.figures import figures
from t5lite.reporting.report import write_report
from tests.reporting.fakes import write_run

SVG = "{http://www.w3.org/2000/svg}"
LONG = "a rather long name of a label, and its end"
EVIL = "<b>\"x\" & 'y'</b>"


def write_group(folder, labels, matrices, split="validation", name="net", **given):
    """Write a run for each matrix, with seeds 0, 1, …"""
    return [
        write_run(
            folder, f"{name}-{seed}", {"accuracy": 0.5}, seed=seed, **given,
            classes={split: {"labels": list(labels), "confusion": np.asarray(each).tolist()}},
        )
        for seed, each in enumerate(matrices)
    ]  # fmt: skip


def report_of(folder, runs):
    """Return (the report, its pages as text)."""
    report = write_report(runs, folder / "out", "t")
    return report, (folder / "out" / "report.html").read_text()


def read_cells(page):
    """Return {(true label, answer): (count, opacity)} from the tooltips and styles of the first matrix on the page."""
    drawn = next(each for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "true label" in each)
    cells = {}
    for group in ElementTree.fromstring(drawn).iter("g"):
        title = group.find("title")
        if title is not None and (said := re.match("true label (.*), answer (.*): ([0-9,]+) ", title.text)):
            style = group.find("path").get("style")
            opacity = float((re.search(r"opacity: ([\d.]+)", style) or [0, 1])[1])
            assert "var(--heat)" in style or opacity == 0
            cells[said[1], said[2]] = (int(said[3].replace(",", "")), opacity)
    return cells


def test_seeds_are_added_and_a_colour_is_the_share_of_the_row(tmp_path):
    runs = write_group(tmp_path, ("no", "yes"), [[[6, 2], [10, 1000]], [[0, 0], [30, 960]]])
    _, page = report_of(tmp_path, runs)
    cells = read_cells(page)
    assert {pair: count for pair, (count, _) in cells.items()} == {
        ("no", "no"): 6, ("no", "yes"): 2, ("yes", "no"): 40, ("yes", "yes"): 1960,
    }  # fmt: skip
    assert [cells[pair][1] for pair in cells] == pytest.approx([0.75, 0.25, 0.02, 0.98], abs=1e-6)
    assert "answers on validation: net, seeds 0, 1" in page and re.search("<text[^>]*>1,960</text>", page)
    assert 'aria-label="answers on validation: net, seeds 0, 1: 97.7 %' in page  # readers of screens hear what is drawn
    assert "yes as no (40), no as yes (2)" in page


def test_a_classifier_that_gives_one_answer_is_a_full_column_and_a_sentence(tmp_path):
    counts = np.zeros((4, 4), int)
    counts[:, 2] = (5, 9, 20, 1)
    _, page = report_of(tmp_path, write_group(tmp_path, "abcd", [counts]))
    assert {answer for (_, answer), (_, opacity) in read_cells(page).items() if opacity == 1} == {"c"}
    assert "100.0 % of the answers are c" in page


@pytest.mark.parametrize(("tested", "splits"), [("ab", ["test"]), ("xy", ["validation", "test"])])
def test_a_test_set_takes_the_place_of_validation_sets_with_the_same_labels(tmp_path, tested, splits):
    matrix = [[1, 0], [0, 1]]
    classes = {"validation": {"labels": ["a", "b"], "confusion": matrix}}
    classes["test"] = {"labels": list(tested), "confusion": matrix}
    run = write_run(tmp_path, "net-0", {"accuracy": 0.5}, classes=classes, splits={"test": {"accuracy": 0.5}})
    report, _ = report_of(tmp_path, [run])
    assert [each.split for each in find_matrices(report.groups)] == splits


def test_each_group_has_its_matrix_and_other_tasks_have_none(tmp_path):
    runs = write_group(tmp_path, "ab", [np.eye(2, dtype=int)])
    runs += write_group(tmp_path, "ab", [np.eye(2, dtype=int)], name="wide", fields={"model.d_model": 64})
    runs.append(write_run(tmp_path, "text-0", {"loss": 1.0}, fields={"model.d_model": 96}))
    report, page = report_of(tmp_path, runs)
    assert re.findall(r"<figcaption>answers on validation: (\w+), seed 0<", page) == ["net", "wide"]
    assert not [note for note in report.notes if "confusion" in note]


def test_long_and_hostile_names_are_cut_and_shown_whole_under_the_pointer(tmp_path):
    labels = (LONG, EVIL, "short")
    _, page = report_of(tmp_path, write_group(tmp_path, labels, [np.eye(3, dtype=int)]))
    drawn = next(each for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "true label" in each)
    root = ElementTree.fromstring(drawn)
    texts = {"".join(text.itertext()) for text in root.iter("text")}
    titles = [title.text for title in root.iter("title")]
    assert "a rather … its end" in texts and LONG not in texts and titles.count(LONG) == 2
    assert EVIL in texts and EVIL not in titles and "<b>" not in page


def test_names_that_are_cut_to_the_same_text_have_numbers(tmp_path):
    labels = [f"a rather long name {letter} and its end" for letter in "xyz"]
    _, page = report_of(tmp_path, write_group(tmp_path, labels, [np.eye(3, dtype=int)]))
    assert [f">{number} a rather" in page for number in (1, 2, 3)] == [True] * 3


def test_many_labels_have_colours_but_no_numbers(tmp_path):
    labels = [f"label {number}" for number in range(77)]
    counts = 7321 * np.eye(77, dtype=int) + 1234
    _, page = report_of(tmp_path, write_group(tmp_path, labels, [counts]))
    drawn = next(each for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "true label" in each)
    assert "8,555" not in drawn and "1,234" not in drawn and "label 76" in drawn
    assert 'class="broad"' in page and len(drawn) < 600_000
    opacities = set(map(float, re.findall(r"var\(--heat\); opacity: ([\d.]+)", drawn)))
    assert {0.1} <= opacities  # the many small shares are not left white


@pytest.mark.parametrize(
    ("count", "reason"), [(150, "there are 150 labels, more than 100"), (3, "result.json has none")]
)
def test_a_matrix_that_is_not_drawn_is_named_with_the_place_of_its_numbers(tmp_path, count, reason):
    labels = {"labels": [f"l{number}" for number in range(count)]}
    report, page = report_of(tmp_path, [write_run(tmp_path, "net-0", {"accuracy": 0.5}, provenance=labels)])
    (note,) = [note for note in report.notes if "confusion" in note]
    assert f"net-0, validation: no confusion matrix is drawn, because {reason}. `evaluate --json`" in note
    assert "answers on" not in page


def test_a_matrix_is_also_a_document_of_its_own(tmp_path):
    report, _ = report_of(tmp_path, write_group(tmp_path, ["no", LONG], [[[6, 2], [10, 1000]]]))
    (drawn,) = figures(report.tasks[0], "t")
    root = ElementTree.fromstring(drawn)
    texts = ["".join(text.itertext()) for text in root.findall(f"{SVG}text")]
    assert "var(" not in drawn and texts[0] == "answers on validation: net, seed 0"
    assert max(map(len, texts)) < 50 and LONG in " ".join(texts)
