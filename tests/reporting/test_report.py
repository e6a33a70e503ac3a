"""The three files of a report about a small study with all kinds of runs."""

import html
import html.parser
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from t5lite.reporting.report import to_json, write_report
from t5lite.system.errors import UserError
from tests.reporting.fakes import write_run

EVIL = '<script>$x_1$</b> & | `b` "q"'


def _lines(end):
    lines = [{"step": 0, "split": "validation", "loss": 7.0}]
    for step in range(10, 101, 10):
        loss = end + (7 - end) * (1 - step / 100)
        lines.append({"step": step, "split": "train", "loss": loss - 0.1, "tokens": step * 100})
        lines.append({"step": step, "split": "validation", "loss": loss})
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pre-training, and four groups of three seeds: from scratch, pre-trained, with a hostile name, bag of words."""
    folder = tmp_path_factory.mktemp("runs")
    other = {"heldout": {"validation": "other"}, "data": {"data.train": "general"}}
    pretrain = {"fields": {"objective.name": "span_corruption"}, "provenance": other, "cost": {"seconds": 1000.0}}
    write_run(folder, "pretrain", {"loss": 3.0}, lines=_lines(3.0), **pretrain)
    for seed in range(3):
        for name, accuracy, fields in (
            ("scratch", 0.6, {}),
            ("pretrained", 0.7, {"init_from": "@pretrain"}),
            ("evil", 0.61, {"model.d_model": 64}),
        ):
            shown = EVIL if name == "evil" else name
            loss = 5 - 3 * accuracy + 0.1 * seed**2 * accuracy
            metrics = {
                "loss": loss,
                "accuracy": accuracy + 0.01 * seed**2 * accuracy,
                "m<i>": 1.0 + seed,
                "perplexity": math.nan,
            }
            run = {"name": shown, "seed": seed, "fields": fields, "lines": _lines(loss)}
            write_run(folder, f"{name}-{seed}", metrics, **run)
        bag = {"fields": {"model.architecture": "bag_of_words"}, "cost": {"tokens": 0, "flops": 0.0}}
        write_run(folder, f"bag-{seed}", {"accuracy": 0.75}, seed=seed, **bag)
    names = ("pretrain", *(f"{name}-{seed}" for name in ("scratch", "pretrained", "evil", "bag") for seed in range(3)))
    return [folder / name for name in names]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "a" / "report"
    write_report(runs, out, "From scratch <or> not", absent={Path("lost-0"): "failed: out of memory"})
    return {path.name: path.read_text() for path in out.iterdir()}


class _Page(html.parser.HTMLParser):
    """Count tags and ids, and note unclosed tags and links to other files."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.links, self.text = Counter(), Counter(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids.update(value for name, value in attrs if name == "id")
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_three_files_are_written(written):
    assert sorted(written) == ["report.html", "report.json", "report.md"]


def test_json_holds_runs_groups_and_all_pairs(written):
    report = json.loads(written["report.json"], parse_constant=lambda name: pytest.fail(name))
    assert set(report) == {"title", "runs", "groups", "comparisons", "notes", "method"}
    assert {"run": "lost-0", "name": None, "seed": None, "status": "failed: out of memory"}.items() <= report["runs"][
        -1
    ].items()
    first = report["runs"][1]
    assert (first["run"], first["name"], first["seed"], first["status"]) == ("scratch-0", "scratch", 0, "complete")
    assert first["result"]["metrics"]["validation"]["accuracy"] == 0.6
    pairs = {(each["a"], each["b"]) for each in report["comparisons"]}
    assert len(pairs) == 6 and ("scratch", "pretrained") in pairs  # the pairs of 4 groups; pretrain is another task
    result = next(each for each in report["comparisons"] if each["b"] == "pretrained" and each["metric"] == "accuracy")
    assert result["ci_low"] < result["delta"] < result["ci_high"] and result["n"] == 3 and result["resolved"] is True
    group = next(group for group in report["groups"] if group["name"] == "pretrained")
    assert group["seeds"] == [0, 1, 2] and group["metrics"]["validation"]["accuracy"]["n"] == 3
    assert group["cost"]["seconds"] == 90 and group["cost_with_origins"]["seconds"] == 1090
    assert group["metrics"]["validation"]["perplexity"]["mean"] is None


def test_the_report_begins_with_verdicts_in_sentences(written):
    text = _Page(written["report.html"]).text
    verdict = re.search(r"accuracy on validation: \+0\.10\d+ \(95 % interval .*?, 3 seeds\): better", text)
    assert verdict and verdict.start() < text.index("Each group")
    assert "failed: out of memory" in text[: verdict.start()]
    assert re.search(r"- accuracy on validation: \+0\.10\d+ \(95 % .*\): \*\*better\*\*", written["report.md"])


def test_the_page_is_one_well_formed_file_that_loads_nothing(written):
    page = _Page(written["report.html"])
    assert not page.open and page.tags["svg"] > 4
    assert not page.tags["script"] and not page.tags["link"] and not page.tags["img"]
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in written["report.html"] and "@import" not in written["report.html"]


def test_pictures_do_not_share_ids(written):
    page = _Page(written["report.html"])
    assert page.ids and max(page.ids.values()) == 1
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", written["report.html"])) <= set(page.ids)


def test_pictures_follow_the_pages_colours_and_say_what_they_show(written):
    drawn = "".join(re.findall(r"<svg.*?</svg>", written["report.html"], re.DOTALL))
    assert "var(--g1)" in drawn and "var(--ink)" in drawn and "<style" not in drawn and "DejaVu" not in drawn
    assert not set(re.findall(r"(?:fill|stroke): (#\w+)", drawn))
    labels = re.findall(r'<figure role="img" aria-label="([^"]*)"', written["report.html"])
    assert len(labels) == written["report.html"].count("<figure") and any("pretrained 0.7" in each for each in labels)


def test_names_are_shown_unchanged_in_every_language(written):
    assert EVIL in _Page(written["report.html"]).text
    assert html.escape(EVIL, quote=False) in "".join(re.findall(r"<text.*?</text>", written["report.html"], re.DOTALL))
    assert "<script>" not in written["report.md"] and r"\| \`b\`" in written["report.md"]


def test_markdown_tables_have_as_many_cells_in_each_row(written):
    for table in re.findall(r"(?:^\|.*\n)+", written["report.md"], re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1


def test_costs_include_the_pre_training(written):
    assert re.search(r"\| pretrained \+ pretrain \|.*\| 18m10s \|", written["report.md"])
    assert re.search(r"\| pretrained \|.*\| 1m30s \|", written["report.md"])


def test_configs_show_only_fields_that_differ(written):
    section = written["report.md"].partition("## Differences between configs")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w.]+)`", section, re.MULTILINE) == ["init_from", "model.architecture", "model.d_model"]
    assert "`@pretrain`" in section


def test_the_same_runs_have_the_same_report(runs, written, tmp_path):
    write_report(runs, tmp_path, "From scratch <or> not", absent={Path("lost-0"): "failed: out of memory"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written


def test_values_that_are_not_finite_never_reach_the_json(runs, tmp_path):
    report = write_report(runs, tmp_path, "t")
    assert math.isnan(report.entries[1].run.result["metrics"]["validation"]["perplexity"])
    json.dumps(to_json(report), allow_nan=False)


def test_a_folder_that_cannot_be_written_is_refused(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        write_report(runs, tmp_path / "file", "t")
    assert (tmp_path / "file").read_text() == "mine"
