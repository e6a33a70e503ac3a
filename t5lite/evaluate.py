"""Evaluate: the metrics of a run's newest checkpoint on held-out text, its own or other.

python -m t5lite.evaluate --checkpoint runs/tiny
python -m t5lite.evaluate --checkpoint runs/tiny --config.data.validation.source='files:other/*.txt' --json
"""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from t5lite import cli
from t5lite.evaluation import Evaluator
from t5lite.experiment import open_run
from t5lite.training.sharding import make_mesh
from t5lite.training.start import load_params
from t5lite.training.trainer import batch_shapes


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print the metrics as a table, or as one JSON object."""
    parser = cli.parser("evaluate", __doc__)
    parser.add_argument("--json", action="store_true", help='print {"checkpoint", "step", "metrics"}')
    arguments, config = cli.parse_with_workdir(parser, argv)
    cli.start_jax(config.deterministic)
    experiment = open_run(config, arguments.workdir)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    batch = batch_shapes(experiment.objective, config.batch_size, experiment.vocabulary.table)
    params, step = load_params(arguments.workdir, experiment.model, batch, mesh)
    metrics = Evaluator(experiment, mesh).all(params)
    if arguments.json:
        print(json.dumps({"checkpoint": str(arguments.workdir), "step": step, "metrics": metrics}))
        return
    table = Table(title=f"{arguments.workdir}, step {step}")
    names = sorted({name for values in metrics.values() for name in values})
    for column in ("split", *names):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, values in metrics.items():
        table.add_row(split, *(f"{values[name]:.4f}" if name in values else "" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
