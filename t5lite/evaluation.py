"""Metrics of parameters on held-out text.

Of every objective: loss, perplexity and token accuracy; bits per byte of language models. Of pairs also, from one pass
of the encoder an example:

    accuracy, macro_f1   the most likely of the known labels, where targets are a closed set
    exact_match          the greedily generated target is the given one, on `eval.generate_rows` pairs
"""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from t5lite.experiment import Experiment
from t5lite.training.metrics import Metrics, from_sums
from t5lite.training.sharding import put_batch
from t5lite.training.trainer import compile_eval_step


class Evaluator:
    """Evaluates parameters on the held-out sets of an experiment; its steps compile once."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh = experiment, mesh
        self._batches = experiment.evaluation_rows()
        self._step = compile_eval_step(
            experiment.model, experiment.objective, experiment.vocabulary.table, experiment.evaluation_batch_size, mesh
        )

    def losses(self, params: Any) -> dict[str, Metrics]:
        """{split: metrics} from sums over each held-out set."""
        return {name: self._losses(params, batches()) for name, batches in self._batches.items()}

    def all(self, params: Any) -> dict[str, Metrics]:
        return self.losses(params)

    def _losses(self, params: Any, batches: Any) -> Metrics:
        total: dict[str, float] = {}
        for index, rows in enumerate(batches):
            sums = self._step(params, put_batch(rows, self.mesh), jnp.int32(index))
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + value
        total = {name: float(value) for name, value in total.items()}
        return from_sums(total, self.experiment.objective.predicts_text)
