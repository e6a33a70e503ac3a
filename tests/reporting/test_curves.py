"""Curves: the logged losses of a group's seeds are combined."""

import numpy as np
import pytest

from t5lite.reporting.comparison import compare
from t5lite.reporting.curves import MOST_POINTS, loss_panels
from t5lite.reporting.runs import read_run
from tests.reporting.fakes import write_run


def _panels(workdirs):
    (task,) = compare([read_run(workdir) for workdir in workdirs], "t", (), {}).tasks
    return loss_panels(task)


def _logged(values, split="validation", tokens_a_step=None):
    lines = []
    for step, loss in values.items():
        if tokens_a_step:
            lines.append({"step": step, "split": "train", "loss": 9.0, "tokens": step * tokens_a_step})
        lines.append({"step": step, "split": split, "loss": loss})
    return lines


def _seeds(folder, curves, **given):
    return [
        write_run(folder, f"a-{seed}", {"loss": 1.0}, seed=seed, lines=_logged(values, **given))
        for seed, values in enumerate(curves)
    ]


def test_a_line_is_the_mean_over_seeds_in_a_band_from_minimum_to_maximum(tmp_path):
    curves = [{0: 7.0, 10: 4.0, 20: 3.0}, {0: 8.0, 10: 6.0, 20: 2.0}, {0: 9.0, 10: 5.0, 20: 4.0, 30: 1.0}]
    (panel,) = _panels(_seeds(tmp_path, curves))
    ((line,),) = (series.lines for series in panel.series)
    assert line.x.tolist() == [0, 10, 20]  # the steps that all seeds logged
    assert line.mean.tolist() == pytest.approx([8, 5, 3])
    assert line.low.tolist() == [7, 4, 2] and line.high.tolist() == [9, 6, 4]
    assert not panel.series[0].by_tokens and "by steps: a from 8 to 3" in panel.label


def test_where_tokens_were_logged_they_are_the_x(tmp_path):
    (panel,) = _panels(_seeds(tmp_path, [{10: 4.0, 20: 3.0, 30: 2.0}], tokens_a_step=100))
    assert panel.series[0].by_tokens and panel.series[0].lines[0].x.tolist() == [1000, 2000, 3000]


def test_seeds_with_few_steps_in_common_have_a_line_each(tmp_path):
    (panel,) = _panels(_seeds(tmp_path, [{0: 7.0, 10: 4.0, 20: 3.0}, {0: 8.0, 11: 6.0, 21: 2.0}]))
    lines = panel.series[0].lines
    assert [line.x.tolist() for line in lines] == [[0, 10, 20], [0, 11, 21]]
    assert all((line.low == line.mean).all() for line in lines)


def test_a_long_training_loss_is_averaged_over_neighbours(tmp_path):
    values = {step: float(step) for step in range(1, 4 * MOST_POINTS + 1)}
    (panel,) = _panels(_seeds(tmp_path, [values, values], split="train"))
    (line,) = panel.series[0].lines
    assert panel.title == "training loss" and len(line.x) == MOST_POINTS
    assert line.mean[:2].tolist() == pytest.approx([2.5, 6.5]) and np.allclose(line.x, line.mean)


def test_each_held_out_set_has_a_panel(tmp_path):
    lines = [*_logged({0: 7.0, 10: 5.0, 20: 3.0}), *_logged({0: 6.0, 10: 5.0, 20: 4.0}, split="validation_news")]
    heldout = {"heldout": {"validation": "x", "validation_news": "y"}}
    splits = {"validation_news": {"loss": 4.0}}
    run = write_run(tmp_path, "a-0", {"loss": 3.0}, lines=lines, splits=splits, provenance=heldout)
    panels = _panels([run])
    assert [panel.title for panel in panels] == [
        "loss on validation during training",
        "loss on validation_news during training",
    ]
    assert [panel.series[0].lines[0].mean[-1] for panel in panels] == [3, 4]


def test_a_run_evaluated_only_at_start_and_end_shows_its_training_loss(tmp_path):
    lines = [*_logged({0: 7.0, 20: 3.0}), *_logged({1: 7.0, 10: 5.0, 20: 3.5}, split="train")]
    (panel,) = _panels([write_run(tmp_path, "a-0", {"loss": 3.0}, lines=lines)])
    assert panel.title == "training loss" and panel.series[0].lines[0].mean.tolist() == [7, 5, 3.5]
