"""Numbers that are not finite: the update is left out, counted and said; a run of them ends; spikes are told."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite import preview
from t5lite import train as verb
from t5lite.model.build import make_model
from t5lite.objectives.catalogue import make_objective
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Vocabulary
from t5lite.training.sharding import place_batch
from t5lite.training.tables import flatten_with_paths
from t5lite.training.trainer import make_trainer
from t5lite.training.watch import LOSSES_BEFORE_SPIKES, Totals, Watch
from tests.small import small_config, write_texts

VOCABULARY = Vocabulary.synthetic(290, 20)
FAR_TOO_HIGH = (
    "--config.schedule.rate=1e6",
    "--config.optimizer.weight_decay=1000.0",
)  # 1e9 times the parameters a step
POISON = 7  # a token whose embedding is made infinite


def _poisoned_rows(config, poisoned):
    """Windows without the token, but for the rows `poisoned`, where it is everywhere."""
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY)
    rows = np.random.default_rng(0).integers(POISON + 1, 290, (config.batch_size, objective.window), dtype=np.int32)
    rows[list(poisoned)] = POISON
    return {"tokens": rows}


def _trainer(config):
    objective = make_objective(config.objective, config.model.architecture, VOCABULARY)
    return make_trainer(config, make_model(config.model, VOCABULARY), objective, VOCABULARY.table, 10)


def _is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)


def _with_poison(state):
    embedding = state.params["token_embedding"]["embedding"]
    params = state.params | {"token_embedding": {"embedding": embedding.at[POISON].set(jnp.inf)}}
    return state.replace(params=params)


@pytest.mark.parametrize(
    ("optimizer", "microbatches", "data"),
    [
        ("adamw", 2, 4),
        pytest.param("adafactor", 2, 1, marks=pytest.mark.slow),
        ("muon", 1, 1),
        pytest.param("adamw", 1, 1, marks=pytest.mark.slow),
        pytest.param("lion", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_an_update_that_is_left_out_changes_nothing_but_the_schedules_step(optimizer, microbatches, data):
    config = small_config("", "span_corruption", "decoder")
    config.optimizer.name = optimizer
    config.optimizer.momentum = {"adafactor": 0.9}.get(optimizer)
    # Only the poisoned rows see the infinite embedding: it takes no part in the softmax.
    config.model.tie_embeddings = False
    config.microbatches, config.mesh.data = microbatches, data
    trainer = _trainer(config)
    state = _with_poison(trainer.init())
    before = jax.device_get((state.params, state.opt_state))
    state, metrics = trainer.step(state, place_batch(_poisoned_rows(config, {1, 6}), trainer.mesh))
    assert bool(metrics["skipped"]) and not math.isfinite(metrics["loss"])
    assert np.flatnonzero(~np.asarray(metrics["finite_rows"])).tolist() == [1, 6]
    after = jax.device_get((state.params, state.opt_state))
    changed = [
        (path, new - old)
        for (path, old), (_, new) in zip(flatten_with_paths(before), flatten_with_paths(after), strict=True)
        if old.tobytes() != new.tobytes()
    ]
    steps = [leaf for leaf in jax.tree.leaves(after, is_leaf=_is_schedule) if _is_schedule(leaf)]
    assert [leaf.count for leaf in steps] == [1] and [by for _, by in changed] == [1]
    assert state.step == 1
    state, metrics = trainer.step(state, place_batch(_poisoned_rows(config, ()), trainer.mesh))
    assert not bool(metrics["skipped"]) and np.asarray(metrics["finite_rows"]).all()
    assert not np.array_equal(before[0]["lm_head"]["kernel"], state.params["lm_head"]["kernel"])


@pytest.fixture
def diverging(tmp_path):
    """The path of a config of 30 steps, of which two in a row may be left out."""
    source = write_texts(tmp_path / "texts")
    (tmp_path / "config.py").write_text(
        "from tests.small import small_config\n"
        "def get_config(arg=None):\n"
        f"    config = small_config({source!r})\n"
        "    config.budget.steps, config.max_skipped_steps = 30, 2\n"
        "    config.schedule.name, config.schedule.rate = 'constant', 3e-3\n"
        "    config.schedule.warmup_steps = 0\n"
        "    return config\n"
    )
    return tmp_path / "config.py"


def test_a_run_that_diverges_ends_with_its_last_checkpoint_and_the_rows(diverging, tmp_path, capsys):
    command = ["--config", str(diverging), "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        verb.main([*command, *FAR_TOO_HIGH])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "the loss or the gradient is not finite" in said and "Traceback" not in said
    assert "WARNING: step 2: " in said and "(2 so far)" in said and "step 4: " in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    assert [(line["step"], line["skipped"]) for line in skipped] == [(2, 1), (3, 2)]
    assert skipped[0]["rows"] == list(range(8, 16))
    preview.main(["--config", str(tmp_path / "run" / "config.json"), "--step", "1", "--n", "8", "--json"])
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == skipped[0]["rows"]


def test_an_optimizer_that_divides_by_zero_ends_the_run_at_once(diverging, tmp_path, capsys):
    # Without an epsilon, Adam divides 0 by 0 where a parameter has no gradient, as that of distances that never occur.
    command = ["--config", str(diverging), "--workdir", str(tmp_path / "run"), "--config.optimizer.epsilon=0.0"]
    with pytest.raises(SystemExit) as stop:
        verb.main(command)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert "step 1: the loss and the gradient are finite" in said and "optimizer.epsilon" in said
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()]


@pytest.mark.slow
def test_debug_nans_names_the_operation(diverging, tmp_path, capsys):
    # A decoder, because every operation is compiled for itself. It diverges one step later than an encoder-decoder.
    command = ["--config", str(diverging), "--workdir", str(tmp_path / "run"), "--debug_nans"]
    with pytest.raises(SystemExit) as stop:
        verb.main([*command, *FAR_TOO_HIGH, "--config.model.architecture=decoder"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert "step 3: nan generated by primitive" in said and "t5lite/model/" in said


def _looks(watch, losses):
    return [watch.check(step, loss, not math.isfinite(loss), np.ones(2, bool)) for step, loss in enumerate(losses, 1)]


def test_so_many_in_a_row_are_too_many():
    nan = math.nan
    watch = Watch(Totals(), 2)
    _looks(watch, [nan, nan, 1.0, nan, nan, 1.0])
    assert (watch.totals.skipped, watch.totals.skipped_in_a_row) == (4, 0)
    with pytest.raises(
        UserError, match=r"step 3: .* in the examples 4, 5 of the run \(preview --step 2\), as in the 2 steps before it"
    ):
        _looks(Watch(Totals(), 2), [nan, nan, nan])
    with pytest.raises(UserError, match="step 1: "):
        _looks(Watch(Totals(), 0), [nan])


def test_a_spike_is_told_and_a_falling_or_noisy_loss_is_none(capsys):
    rng = np.random.default_rng(0)
    falling = (8 * np.exp(-np.arange(2000) / 300) + 2 + 0.1 * rng.standard_normal(2000)).tolist()
    watch = Watch(Totals(), 0)
    assert not any(_looks(watch, falling))
    (note,) = _looks(watch, [4.0])
    assert note["spike"] > 10 and "WARNING: step 1: the loss, 4, is " in capsys.readouterr().err
    assert _looks(watch, [2.0]) == [{}] and _looks(watch, [4.0])[0]["spike"] > 6
    early = Watch(Totals(), 0)
    assert not any(_looks(early, [2.0] * (LOSSES_BEFORE_SPIKES - 1) + [9.0]))
