"""Preview: what the model will see at a step, decoded, with the noise highlighted and the realised numbers.

    python -m t5lite.preview --config configs/tiny.py --step 100 --n 3
    python -m t5lite.preview --config configs/tiny.py --n 1000 --json

The examples are those that training would see: the same rows, the same noise. With --json, a line an example:
{"index", "objective", "window", "inputs", "targets", "weights", "mask_rate", "spans"}.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from t5lite import cli
from t5lite.data.tokenizer import Tokenizer
from t5lite.experiment import Experiment, open_experiment
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.noise import Noise
from t5lite.objectives.objective import example_keys, make_batch, make_examples
from t5lite.training.loss import token_counts
from t5lite.training.step import noise_key


class Seen(NamedTuple):
    """One example on its way: its place in the run, the row, what the objective made of it, what the model eats."""

    index: int
    row: dict[str, np.ndarray]
    example: Example
    batch: Batch


def examples_of(experiment: Experiment, step: int, count: int) -> Iterator[Seen]:
    """`count` examples, as NumPy arrays, from the batch of `step` (0-based) on."""
    config, objective = experiment.config, experiment.objective
    rows_of, table = experiment.train_rows(), experiment.vocabulary.table

    @jax.jit
    def make(rows: Any, step: jax.Array) -> tuple[Example, Batch]:
        keys = example_keys(noise_key(config.seed), step, config.batch_size)
        return make_examples(objective, keys, rows, table), make_batch(objective, keys, rows, table)

    for index in range(count):
        at, place = divmod(index, config.batch_size)
        if place == 0:
            rows = rows_of(step + at)
            made = jax.device_get(make(rows, jnp.int32(step + at)))
        row, (example, batch) = jax.tree.map(lambda x: x[place], (rows, made))  # noqa: B023 - used at once
        yield Seen((step + at) * config.batch_size + place, row, example, batch)


def span_lengths(noise: Noise | None) -> list[int]:
    """Tokens of each span of noise, in order; then the spans of length 0."""
    if noise is None:
        return []
    spans = np.cumsum(noise.starts)[np.asarray(noise.mask)]
    return [*np.bincount(spans)[1:].tolist(), *[0] * int(noise.inserts)]


def as_json(seen: Seen, name: str) -> dict[str, Any]:
    """One example as plain values, without padding. On a decoder `inputs` are shifted against `targets` by one."""
    example, batch = seen.example, seen.batch
    if batch.inputs is not None:
        inputs, inputs_ids = batch.inputs, batch.inputs_segment_ids
    else:
        inputs, inputs_ids = batch.decoder_inputs, batch.targets_segment_ids
    real = slice(None) if batch.targets_segment_ids is None else batch.targets_segment_ids > 0
    return {
        "index": seen.index,
        "objective": name,
        "window": seen.row["tokens"].tolist() if "tokens" in seen.row else None,
        "inputs": (inputs if inputs_ids is None else inputs[inputs_ids > 0]).tolist(),
        "targets": batch.targets[real].tolist(),
        "weights": batch.weights[real].tolist(),
        "mask_rate": float(np.mean(example.noise.mask)) if example.noise is not None else None,
        "spans": span_lengths(example.noise),
    }


def _highlighted(tokens: Sequence[int], tokenizer: Tokenizer) -> Text:
    """The decoded tokens, with sentinels and specials in colour."""
    return Text.assemble(
        *((text, "bold magenta" if special else "") for text, special in tokenizer.decode_parts(tokens))
    )


def show(experiment: Experiment, seen: Seen, console: Console) -> None:
    """Print one example, decoded, and what its noise came to."""
    tokenizer, pieces = experiment.dataset.tokenizer, experiment.vocabulary.pieces
    size = experiment.vocabulary.size
    values = as_json(seen, experiment.objective.name)
    used = len({token for token in values["inputs"] if pieces <= token < size})
    spans = values["spans"]
    parts: list[RenderableType] = [Rule(f"example {values['index']}: {values['objective']}", align="left")]
    for side in ("inputs", "targets"):
        count = (f"{side} ({len(values[side])} tokens): ", "bold")
        parts.append(Text.assemble(count, _highlighted(values[side], tokenizer)))
    facts = [f"padding {_padding(seen.batch):.1%}"]
    if values["mask_rate"] is not None:
        mean = f", mean length {np.mean(spans):.2f}" if spans else ""
        facts = [f"masked {values['mask_rate']:.1%}", f"{len(spans)} spans{mean}", f"{used} sentinels", *facts]
    console.print(Group(*parts, Text("; ".join(facts), style="dim")))  # at once: a notebook frames each print


def _padding(batch: Batch) -> float:
    """The share of the batch's places, on both sides, that hold padding."""
    counts = token_counts(batch)
    return 1 - float(counts["tokens"] / counts["places"])


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Show examples of a config's training."""
    parser = cli.parser("preview", __doc__)
    parser.add_argument("--step", type=int, default=0, help="the (0-based) step whose batch is shown first")
    parser.add_argument("--n", type=int, default=4, help="number of examples")
    parser.add_argument("--json", action="store_true", help="a JSON line an example")
    arguments, config = cli.parse_with_config(parser, argv)
    cli.start_jax()
    experiment = open_experiment(config)
    console = Console(highlight=False)
    for seen in examples_of(experiment, arguments.step, arguments.n):
        if arguments.json:
            print(json.dumps(as_json(seen, experiment.objective.name)))
        else:
            show(experiment, seen, console)


if __name__ == "__main__":
    main()
