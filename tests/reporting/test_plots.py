"""Pictures show groups with different looks, for any names and any number of groups."""

import re
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from t5lite.reporting import plots
from t5lite.reporting.figures import figures
from t5lite.reporting.report import write_report
from tests.reporting.fakes import write_run, write_seeds

LINES = [{"step": step, "split": "validation", "loss": 8 - step / 20} for step in range(0, 101, 25)]


def _task(folder, count, **given):
    runs = []
    for i in range(count):
        losses = [3.0 - 0.1 * i % 0.7, 3.1 - 0.1 * i]
        runs += write_seeds(folder, f"group{i}", losses, fields={"model.d_model": 64 + i}, lines=LINES, **given)
    return write_report(runs, folder / "out", "t").tasks[0]


def test_up_to_7_groups_have_a_colour_and_a_mark_each(tmp_path):
    task = _task(tmp_path, 7)
    looks, highlighted = plots._looks(task)
    assert len({look.color for look in looks.values()}) == len({look.marker for look in looks.values()}) == 7
    assert not highlighted
    curves = plots.draw(task, "t")[0][-1].parts[0].svg
    assert {f"--g{i}" for i in range(7)} <= set(re.findall(r"--g\d", curves))


def test_with_more_groups_the_base_and_the_best_have_their_own_look(tmp_path):
    task = _task(tmp_path, 9)
    best = min(task.groups[1:], key=lambda each: each.estimates["validation", "loss"].mean).name
    pictures, caption = plots.draw(task, "t")
    looks, _ = plots._looks(task)
    assert looks["group0"] == plots.LOOKS[0] and looks[best] == plots.LOOKS[1]
    assert [look for name, look in looks.items() if name not in ("group0", best)] == [plots.REST] * 7
    assert f"group0 and {best}, the best of the others by loss on validation, have their own colours" in caption
    assert "7 others" in pictures[-1].parts[0].svg


def test_names_have_the_text_colour(tmp_path):
    for picture in plots.draw(_task(tmp_path, 3), "t")[0]:
        for part in picture.parts:
            texts = re.findall(r"<text[^>]*>", part.svg)
            assert texts and not [text for text in texts if "var(--g" in text]


@pytest.fixture
def odd(tmp_path):
    """Names with signs that matplotlib's font lacks, and with characters that a page must not contain."""
    names = ("模型" * 20, "🚀", "\x1b[31mred\x00\u202e", "\ud800lone")
    runs = [
        write_run(tmp_path, f"r{i}-{seed}", {"loss": 3.0 + i + seed}, name=name, seed=seed, fields=fields, lines=LINES)
        for i, name in enumerate(names)
        for fields in [{"model.d_model": 64 + i}]
        for seed in range(2)
    ]
    return runs, tmp_path / "out"


def test_names_in_any_script_are_drawn_without_a_warning(odd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = write_report(*odd, "t")
    drawn = figures(report.tasks[0], "t")
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(drawn[0]).iter() if text.text]
    assert "🚀" in texts and any(re.fullmatch("(模型)+…型(模型)+", text) for text in texts)


def test_characters_that_a_page_must_not_contain_are_left_out(odd):
    write_report(*odd, "t")
    for name in ("report.html", "report.md"):
        text = (odd[1] / name).read_text()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text) and "[31mred" in text.replace("\\", "")
