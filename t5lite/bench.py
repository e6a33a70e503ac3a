"""Bench: time the training step of a config on this machine, with synthetic rows instead of data.

If the config sets init_from, the model has the shape of that run or of those weights, which must exist.

python -m t5lite.bench --config configs/tiny.py
python -m t5lite.bench --config configs/tiny.py --config.model.dtype=bfloat16 --config.batch_size=64 --json
"""

import json
import time
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from t5lite import cli
from t5lite.checks import check_values
from t5lite.model.build import make_model
from t5lite.model.flops import peak_flops
from t5lite.model.transformer import num_parameters
from t5lite.objectives.objective import Objective
from t5lite.run.chat_template import list_specials
from t5lite.run.inherit import open_given_tokenizer, with_inherited_shape
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.table import make_objective
from t5lite.training.budget import measure_step_seconds
from t5lite.training.loss import check_loss
from t5lite.training.sharding import local_rows, place_batch
from t5lite.training.trainer import count_step_flops, make_trainer, peak_bytes

LABELS = ("O", "B-X", "I-X")  # the number of labels has almost no effect on the speed


def make_synthetic_rows(objective: Objective, vocabulary: Vocabulary, batch_size: int) -> dict[str, np.ndarray]:
    """Return rows of random pieces without padding, in the shapes that `objective` needs. Segment ids are 1."""
    rng = np.random.default_rng(0)
    # answers: a label, a number, or whether a text has a label
    ranges = {"answers": (0, 2), "trained": (1, 2)}
    return {
        name: np.ones(each.shape, np.int32)
        if name.endswith("segment_ids")
        else rng.integers(*ranges.get(name, (3, vocabulary.pieces)), each.shape).astype(each.dtype)
        for name, each in objective.row_structs(batch_size).items()
    }


def bench(config: ConfigDict, given: Collection[str] = ()) -> dict[str, Any]:
    """Measure a config's training step: median seconds, tokens of encoder and decoder per second, MFU and memory.

    given: the fields that the command line has set.
    """
    check_values(config)
    config = with_inherited_shape(config, given=given)
    architecture, tokenizer = config.model.architecture, open_given_tokenizer(config)
    if tokenizer is None:
        specials = list_specials(config)
        vocabulary = Vocabulary.synthetic(config.tokenizer.vocab_size, config.tokenizer.sentinels, specials)
    else:
        vocabulary = tokenizer.vocabulary
    objective = make_objective(config.objective, architecture, vocabulary, LABELS)
    model = make_model(config.model, vocabulary, objective.heads)
    check_loss(config.loss, model.config)
    start = time.perf_counter()
    trainer = make_trainer(config, model, objective, vocabulary.table, total_steps=10**6)
    compile_seconds = time.perf_counter() - start
    rows_of_host = len(local_rows(config.batch_size, trainer.mesh))
    rows = place_batch(make_synthetic_rows(objective, vocabulary, rows_of_host), trainer.mesh)
    seconds = measure_step_seconds(trainer.step, trainer.init(), rows)
    encoder_length, decoder_length = objective.lengths
    flops = count_step_flops(config, model, objective)
    kind = jax.devices()[0].device_kind
    peak = peak_flops(kind)
    return {
        "config": config.name,
        "device": kind,
        "devices": trainer.mesh.size,
        "jax": jax.__version__,
        "params": num_parameters(model.config),
        "batch_size": config.batch_size,
        "encoder_length": encoder_length,
        "decoder_length": decoder_length,
        "dtype": config.model.dtype,
        "step_seconds": seconds,
        "tokens_per_second": config.batch_size * (encoder_length + decoder_length) / seconds,
        "flops_per_second": flops / seconds,
        "mfu": flops / seconds / (peak * trainer.mesh.size) if peak else None,
        "peak_bytes": peak_bytes(trainer),
        "compile_seconds": compile_seconds,
    }


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print the measurements of the config's training step."""
    parser = cli.parser("bench", __doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    cli.add_hosts(parser)
    arguments, config = cli.parse_with_config(parser, argv)
    with cli.start_jax_on_hosts(arguments, config.deterministic):
        measured = bench(config, arguments.given)
        if arguments.json:
            print(json.dumps(measured))
            return
        for name, value in measured.items():
            print(f"{name:18} {value:,.4g}" if isinstance(value, float) else f"{name:18} {value}")


if __name__ == "__main__":
    main()
