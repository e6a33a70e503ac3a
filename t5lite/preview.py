"""Preview: what the model will see at a step, decoded, with the noise highlighted and the realised numbers.

    python -m t5lite.preview --config configs/tiny.py --step 100 --n 3
    python -m t5lite.preview --config configs/tiny.py --n 1000 --json

The examples are those that training would see: the same rows, the same noise. With --json, a line an example:
{"index", "objective", "member", "window", "inputs", "targets", "weights", "mask_rate", "spans", "label",
"token_types"}.

`window` is the row, `inputs` and `targets` are token ids without padding, `weights` those of the targets, `spans` the
numbers of tokens of the spans of noise, 0 for an insertion; `member` says which of a mixture's objectives made it. On
an encoder `targets` are aligned with `inputs`, `weights` mark what is to be predicted, and `label` is the class of the
whole example: of a next sentence 1 where it is none.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from t5lite import cli
from t5lite.checks import STEPS, in_range
from t5lite.data.tokenizer import Tokenizer
from t5lite.experiment import Experiment, open_experiment
from t5lite.objectives.batch import Batch, Example
from t5lite.objectives.noise import Noise
from t5lite.objectives.objective import Objective, example_keys, make_batch, make_examples
from t5lite.training.loss import token_counts
from t5lite.training.step import noise_key
from t5lite.vocabulary import Vocabulary

NOISE, WITHOUT_LOSS = "bold yellow underline", "dim"
NEXT_SENTENCE = ("0, the second part follows the first", "1, the second part does not follow the first")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a random byte may be one, and move the terminal's cursor


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


def as_json(seen: Seen, objective: Objective) -> dict[str, Any]:
    """One example as plain values, without padding. On a decoder `inputs` are shifted against `targets` by one."""
    example, batch = seen.example, seen.batch
    if batch.inputs is not None:
        inputs, inputs_ids = batch.inputs, batch.inputs_segment_ids
    else:
        inputs, inputs_ids = batch.decoder_inputs, batch.targets_segment_ids
    targets_ids = batch.targets_segment_ids if batch.decoder_inputs is not None else batch.inputs_segment_ids
    real = slice(None) if targets_ids is None else targets_ids > 0
    return {
        "index": seen.index,
        "objective": objective.name,
        "member": None if example.member is None else objective.members[int(example.member)],
        "window": seen.row["tokens"].tolist() if "tokens" in seen.row else None,
        "inputs": (inputs if inputs_ids is None else inputs[inputs_ids > 0]).tolist(),
        "targets": batch.targets[real].tolist(),
        "weights": batch.weights[real].tolist(),
        "mask_rate": float(np.mean(example.noise.mask)) if example.noise is not None else None,
        "spans": span_lengths(example.noise),
        "label": None if batch.labels is None or batch.labels < 0 else int(batch.labels),
        "token_types": None if batch.token_types is None else batch.token_types.tolist(),
    }


def _highlighted(tokens: Sequence[int], tokenizer: Tokenizer, marks: Sequence[bool], style: str) -> Text:
    """The decoded tokens, those that `marks` names in `style`, sentinels and specials in a colour of their own."""
    text = Text()
    shown = 0
    ends = [*np.flatnonzero(np.diff(np.asarray(marks, np.int8))) + 1, len(tokens)]
    for start, end in itertools.pairwise([0, *ends]):
        # Decoded from the beginning, because the same token reads otherwise at the start of a text.
        parts = tokenizer.decode_parts(tokens[:end])
        for part, is_special, at in zip(*_columns(parts), strict=True):
            if at + len(part) > shown:
                here = "bold magenta" if is_special else style if marks[start] else ""
                text.append(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", part[max(shown - at, 0) :]), here)
        shown = sum(len(part) for part, _ in parts)
    return text


def _columns(parts: Sequence[tuple[str, bool]]) -> tuple[list[str], list[bool], list[int]]:
    """Texts, whether each is special, and where each begins."""
    texts, specials = [text for text, _ in parts], [special for _, special in parts]
    return texts, specials, [0, *itertools.accumulate(map(len, texts))][:-1]


def show(experiment: Experiment, seen: Seen, console: Console) -> None:
    """Print one example, decoded, and what its noise came to."""
    objective, tokenizer = experiment.objective, experiment.dataset.tokenizer
    values = as_json(seen, objective)
    title = f"example {values['index']}: {values['objective']}"
    if values["member"] is not None:
        title += f", {values['member']}"
    lines = {}
    if values["mask_rate"]:
        # Not the window where sentences changed places, or where the second part is another text's.
        ordered = seen.example.ordered
        title_of, tokens = ("window", seen.row["tokens"]) if ordered is None else ("text before the noise", ordered)
        lines[title_of] = (tokens.tolist(), seen.example.noise.mask, NOISE)
    if seen.batch.inputs is not None:  # a decoder's are its targets, one place later
        lines["inputs"] = (values["inputs"], np.zeros(len(values["inputs"]), bool), "")
    if objective.heads.vocabulary:
        lines["targets"] = (values["targets"], np.array(values["weights"]) == 0, WITHOUT_LOSS)
    parts: list[RenderableType] = [Rule(title, align="left")]
    for name, (tokens, marks, style) in lines.items():
        count = (f"{name} ({len(tokens)} tokens): ", "bold")
        parts.append(Text.assemble(count, _highlighted(tokens, tokenizer, marks, style)))
    if objective.heads.tagger:
        asked = zip(values["targets"], values["weights"], strict=True)
        parts.append(Text(f"tags: {' '.join(objective.labels[tag] for tag, weight in asked if weight)}"))
    if values["label"] is not None:
        label = (objective.labels or NEXT_SENTENCE)[values["label"]]
        parts.append(Text.assemble(("label: ", "bold"), str(label)))
    if 1 in (values["token_types"] or ()):
        parts.append(Text.assemble(("token types: ", "bold"), f"1 from token {values['token_types'].index(1)} on"))
    parts.append(Text("; ".join(_facts(values, seen.batch, experiment.vocabulary)), style="dim"))
    console.print(Group(*parts))  # at once: a notebook frames each print


def _facts(values: dict[str, Any], batch: Batch, vocabulary: Vocabulary) -> list[str]:
    """What the noise came to, in a few words each."""
    facts = [f"padding {_padding(batch):.1%}"]
    if values["mask_rate"] is None:
        return facts
    spans = values["spans"]
    lengths = f", of {min(spans)} to {max(spans)} tokens, {np.mean(spans):.2f} on average" if spans else ""
    used = {token for token in values["inputs"] if vocabulary.pieces <= token < vocabulary.size}
    masked = f"masked {values['mask_rate']:.1%}"
    return [masked, f"{len(spans)} spans{lengths}", f"{len(used)} sentinels in inputs", *facts]


def _padding(batch: Batch) -> float:
    """The share of the batch's places, on both sides, that hold padding."""
    counts = token_counts(batch)
    return 1 - float(counts["tokens"] / counts["places"])


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Show examples of a config's training."""
    parser = cli.parser("preview", __doc__)
    parser.add_argument(
        "--step", type=in_range(int, 0, STEPS), default=0, help="the (0-based) step whose batch is shown first"
    )
    parser.add_argument("--n", type=in_range(int, 0, STEPS), default=4, help="number of examples")
    parser.add_argument("--json", action="store_true", help="a JSON line an example")
    arguments, config = cli.parse_with_config(parser, argv)
    cli.start_jax()
    experiment = open_experiment(config)
    console = Console(highlight=False)
    for seen in examples_of(experiment, arguments.step, arguments.n):
        if arguments.json:
            print(json.dumps(as_json(seen, experiment.objective)))
        else:
            show(experiment, seen, console)


if __name__ == "__main__":
    main()
