"""Preview: show what the model will see at a step, decoded, with the noise marked and measured.

    python -m t5lite.preview --config configs/tiny.py --step 100 --n 3
    python -m t5lite.preview --config configs/tiny.py --n 2000 --summary
    python -m t5lite.preview --config configs/tiny.py --n 1000 --json

Training sees the same examples: the same rows with the same noise. On a terminal, noise has a colour. In a pipe, noise
stands in ⟦⟧. On a decoder, the loss is on the tokens after ▸. What a conversation trains has a colour too, or stands in
⟦⟧, and so does an answer that is a part of the inputs.

For pairs, and for words with tags, a second table counts the texts that are cut, over all rows of the data.

With --json, each example is a line: {"index", "objective", "member", "window", "inputs", "targets", "weights",
"mask_rate", "spans", "answers", "token_types"}.

    member             the mixture's objective that made the example
    window             the row
    inputs, targets    token ids without padding; on an encoder, targets are aligned with inputs
    weights            the loss weights of the targets; on an encoder, they mark the tokens to predict
    spans              the number of tokens in each span of noise; 0: an insertion
    answers            {kind of answer: the true answers, as indices of labels}; for "next sentence", 1 means that
                       the second part does not follow the first
"""

import collections
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from t5lite import cli
from t5lite.checks import STEPS, in_range
from t5lite.data.cut import Cut
from t5lite.data.mixing import Drawn, Share
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Expected, Objective
from t5lite.run.examples import (
    MeasuredNoise,
    TrainingExample,
    as_json,
    make_training_examples,
    measure_noise,
    measure_padding,
)
from t5lite.run.experiment import Experiment, open_experiment
from t5lite.system.vocabulary import Vocabulary
from t5lite.tasks.table import TASKS

NOISE, WITHOUT_LOSS, SPECIAL, BOUNDARY = "bold yellow underline", "dim", "bold magenta", "bold cyan"
TRAINED = "bold green"  # what the assistant says in a conversation, also its special token
NO_ANSWER = "no answer in this window of the context"
MAX_SHARES = 6  # a cell of the summary lists the shares of at most this many classes
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # random bytes may be control characters, which move the cursor


def decode_with_styles(tokens: Sequence[int], tokenizer: TextTokenizer, styles: Sequence[str], plain: bool) -> Text:
    """Return the text of `tokens`, each token in its style of `styles`. Sentinels, specials and EOS have style SPECIAL,
    if they are not TRAINED.

    plain: whether to mark noise, and what is trained of a conversation, with ⟦⟧, for an output without colours.
    """
    text, shown, end, last_style = Text(), 0, 0, ""
    for style, run in itertools.groupby(styles):
        end += len(list(run))
        # Decode from the beginning, because a token at the start of a text decodes differently.
        new_parts = list(_skip_characters(tokenizer.decode_parts(tokens[:end], with_eos=True), shown))
        shown += sum(len(part) for part, _ in new_parts)
        if (last_style, style) == (WITHOUT_LOSS, ""):
            text.append(" ▸ ", BOUNDARY)
        if plain and style in (NOISE, TRAINED):
            new_parts = [("⟦", False), *new_parts, ("⟧", False)]
        for part, is_special in new_parts:
            part_style = SPECIAL if is_special and style != TRAINED else style
            text.append(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", part), part_style)
        last_style = style
    return text


def _skip_characters(parts: Sequence[tuple[str, bool]], start: int) -> Iterator[tuple[str, bool]]:
    """Yield `parts` without their first `start` characters. parts: (text, whether the text is special)."""
    for part, is_special in parts:
        if len(part) > start:
            yield part[start:], is_special
        start = max(start - len(part), 0)


def _make_lines(
    values: dict[str, Any], example: TrainingExample, objective: Objective, answer: range
) -> Iterator[tuple[str, list[int], list[str]]]:
    """Yield (title, tokens, a style for each token) for each line that shows an example.

    Args:
        values: from `as_json`. answer: the places of the inputs that are the answer.
    """
    weights, noise = values["weights"], example.objective_example.noise
    window, is_noise = None, ()
    if values["mask_rate"]:
        # `ordered` holds the noise if sentences changed places, or if the second part is from another text.
        ordered = example.objective_example.ordered
        title, window = ("window", example.row["tokens"]) if ordered is None else ("text before the noise", ordered)
        is_noise = np.asarray(noise.mask)
        yield title, window.tolist(), _choose_styles(is_noise, NOISE)
    if objective.architecture == "encoder":
        yield "inputs", values["inputs"], _mark_answer(_choose_styles(weights, NOISE), answer)
        if objective.heads.vocabulary:
            yield "targets", values["targets"], _choose_styles(weights, NOISE, WITHOUT_LOSS)
        return
    if objective.architecture == "encoder_decoder":  # a decoder's inputs are its targets, shifted by one place
        marked = [False] * len(values["inputs"])
        text = slice(0 if objective.bos is None else 1, -1)  # BOS and EOS are not in the window
        if window is not None and _keeps_places(values["inputs"][text], window, is_noise):
            marked[text] = is_noise
        yield "inputs", values["inputs"], _mark_answer(_choose_styles(marked, NOISE), answer)
    if objective.rows != "conversations":
        yield "targets", values["targets"], _choose_styles(weights, "", WITHOUT_LOSS)
        return
    places = itertools.groupby(range(len(weights)), lambda place: example.batch.targets_segment_ids[place])
    for number, conversation in places:
        tokens, trained = zip(*((values["targets"][place], weights[place]) for place in conversation), strict=True)
        yield f"conversation {number}", list(tokens), _choose_styles(trained, TRAINED, WITHOUT_LOSS)


def _mark_answer(styles: list[str], answer: range) -> list[str]:
    return [TRAINED if place in answer else style for place, style in enumerate(styles)]


def _choose_styles(marked: Sequence[Any], style: str, other: str = "") -> list[str]:
    return [style if mark else other for mark in marked]


def _keeps_places(inputs: list[int], window: np.ndarray, is_noise: np.ndarray) -> bool:
    """Return whether `inputs` equal the window at all places without noise."""
    return len(inputs) == len(window) and bool((np.asarray(inputs) == window)[~is_noise].all())


def show(experiment: Experiment, example: TrainingExample, console: Console) -> None:
    """Print one example, decoded, and the measures of its noise."""
    objective, tokenizer = experiment.objective, experiment.dataset.tokenizer
    plain = console.no_color or not (console.is_terminal or console.is_jupyter)
    values = as_json(example, objective)
    title = f"example {values['index']}: {values['objective']}"
    if values["member"] is not None:
        title += f", {values['member']}"
    parts: list[RenderableType] = [Rule(title, align="left")]
    answers = _read_answers(experiment, example, values["inputs"])
    located = next((places for _, places, _ in answers if places), range(0))
    for name, tokens, styles in _make_lines(values, example, objective, located):
        count = (f"{name} ({len(tokens)} tokens): ", "bold")
        parts.append(Text.assemble(count, decode_with_styles(tokens, tokenizer, styles, plain)))
    parts += [Text.assemble((f"{title}: ", "bold"), text) for title, _, text in answers if text]
    if 1 in (values["token_types"] or ()):
        parts.append(Text.assemble(("token types: ", "bold"), f"1 from token {values['token_types'].index(1)} on"))
    expected = (
        objective.expected
        if example.objective_example.member is None
        else objective.members[int(example.objective_example.member)].expected
    )
    parts.append(Text("; ".join(_describe_noise(values, expected, example.batch, experiment.vocabulary)), style="dim"))
    console.print(Group(*parts))  # one print, because a notebook frames each print


def _read_answers(
    experiment: Experiment, example: TrainingExample, inputs: Sequence[int]
) -> list[tuple[str, range, str]]:
    """Return (kind of answer, the places of the inputs that are the answer, the answer's text) for each head.

    The text is empty if the example does not count.
    """
    read, objective = [], experiment.objective
    for head, answers in example.batch.answers.items():
        task, places = TASKS[head], range(0)
        text = " ".join(task.name_answers(answers, answers, experiment.reading))
        if text and task.locate_answer is not None:
            places = task.locate_answer(answers, inputs, objective.front_length, experiment.vocabulary.eos)
            tokens = [inputs[place] for place in places]
            text = experiment.dataset.tokenizer.decode(tokens).strip() if places else NO_ANSWER
        read.append((task.name, places, text))
    return read


def _describe_noise(values: dict[str, Any], expected: Expected, batch: Batch, vocabulary: Vocabulary) -> list[str]:
    """Return texts with the measured values of the noise, and the expected values in brackets."""
    facts = [f"padding {measure_padding(batch):.1%}"]
    if values["mask_rate"] is None:
        return facts
    spans = values["spans"]
    mean = _add_expected(f"{np.mean(spans):.2f}", expected.span_length) if spans else ""
    lengths = f", of {min(spans)} to {max(spans)} tokens, {mean} on average" if spans else ""
    used = {token for token in values["inputs"] if vocabulary.pieces <= token < vocabulary.size}
    rate = _add_expected(f"{values['mask_rate']:.1%}", expected.density, ".1%")
    return [f"masked {rate}", f"{len(spans)} spans{lengths}", f"{len(used)} sentinels in inputs", *facts]


def _add_expected(measured: str, expected: float | None, form: str = ".2f") -> str:
    return measured if expected is None else f"{measured} ({expected:{form}})"


def summarise(measures: Sequence[MeasuredNoise], title: str) -> Table:
    """Return a table of averages over examples, with expected values. Each objective of a mixture has a line."""
    total = sum(len(each.padding) for each in measures)
    lines = [_average(each, total) for each in measures if each.padding]
    names = dict.fromkeys(name for line in lines for name in line)
    table = Table(title=title, title_justify="left", caption="in brackets: expected", box=box.SIMPLE)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for line in lines:
        table.add_row(*(line.get(name, "") for name in names))
    return table


def make_cut_table(cut: Mapping[str, Cut]) -> Table:
    """Return a table with a line for each split: how many of its inputs and targets are cut."""
    table = Table(title="all rows of the data", title_justify="left", box=box.SIMPLE)
    columns = {"": "", "rows": "rows", "inputs cut": "inputs", "targets cut": "targets", "tokens lost": "tokens",
               "longest inputs": "longest_inputs", "longest targets": "longest_targets"}  # fmt: skip
    for title in columns:
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    for split, counts in cut.items():
        table.add_row(split, *(f"{counts[name]:,}" for name in columns.values() if name))
    return table


def make_share_table(shares: Mapping[str, Share], drawn: Mapping[str, Drawn]) -> Table:
    """Return a table with a line for each member of a mixture: its share of the examples and of the rows."""
    rows, examples = (sum(counts) for counts in zip(*drawn.values(), strict=True))
    title = f"members of the mixture, in {rows:,} rows"
    table = Table(title=title, title_justify="left", caption="in brackets: expected", box=box.SIMPLE)
    for name in ("", "examples", "share of examples", "share of rows"):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for name, share in shares.items():
        of_examples = _add_expected(f"{drawn[name].examples / examples:.1%}", share.of_examples, ".1%")
        of_rows = _add_expected(f"{drawn[name].rows / rows:.1%}", share.of_rows, ".1%")
        table.add_row(Text(name), f"{share.examples:,}", of_examples, of_rows)
    return table


def make_label_tables(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Table]:
    """Yield a table for each closed set of labels: a line for each label says how many pairs of each split have it."""
    for labels in dict.fromkeys(map(tuple, counts.values())):
        yield _make_label_table({split: each for split, each in counts.items() if tuple(each) == labels})


def _make_label_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(title="labels of the data", title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for split in counts:
        table.add_column(split, justify="right")
    for label in next(iter(counts.values())):
        cells = (f"{of[label]:,} ({of[label] / max(sum(of.values()), 1):.1%})" for of in counts.values())
        table.add_row(Text(label), *cells)
    return table


def _average(each: MeasuredNoise, total: int) -> dict[str, str]:
    """Return {column: text} for the examples of one objective, out of `total` examples."""
    count = len(each.padding)
    line = {"": each.name, "examples": f"{count}"}
    if each.share < 1:
        line["of all"] = _add_expected(f"{count / total:.1%}", each.share, ".1%")
    if each.mask_rates:
        line["masked"] = _add_expected(f"{np.mean(each.mask_rates):.1%}", each.expected.density, ".1%")
    if each.spans:
        line["spans"] = f"{len(each.spans) / count:.1f}"
        line["tokens a span"] = _add_expected(f"{np.mean(each.spans):.2f}", each.expected.span_length)
    for name, answers in each.labels.items():
        counts = collections.Counter(answers)
        shares = [f"{answer}: {counts[answer] / len(answers):.1%}" for answer in sorted(counts)]
        line[name] = ", ".join(shares) if len(shares) <= MAX_SHARES else f"{len(shares)} classes"
    return line | {"padding": f"{np.mean(each.padding):.1%}"}


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Print examples of a config's training, and a summary of these examples."""
    parser = cli.parser("preview", __doc__)
    parser.add_argument(
        "--step", type=in_range(int, 0, STEPS), default=0, help="show the batch of this step first; steps count from 0"
    )
    parser.add_argument("--n", type=in_range(int, 1, STEPS), default=4, help="number of examples")
    parser.add_argument("--json", action="store_true", help="print each example as a line of JSON")
    parser.add_argument("--summary", action="store_true", help="print only the summary of the examples")
    arguments, config = cli.parse_with_config(parser, argv)
    cli.start_jax()
    experiment = open_experiment(config, given=arguments.given)
    console = Console(highlight=False)

    def show_each() -> Iterator[TrainingExample]:
        for example in make_training_examples(experiment, arguments.step, arguments.n):
            if not arguments.summary:
                show(experiment, example, console)
            yield example

    if arguments.json:
        for example in make_training_examples(experiment, arguments.step, arguments.n):
            print(json.dumps(as_json(example, experiment.objective)))
        return
    measures = measure_noise(show_each(), experiment.objective)
    if arguments.summary or arguments.n > 1:
        console.print(summarise(measures, f"{arguments.n} examples from step {arguments.step} on"))
    if cut := experiment.count_cut():
        console.print(make_cut_table(cut))
        for note in experiment.cut_notes():
            console.print(Text(note))
    if note := experiment.describe_references():
        console.print(Text(note))
    if shares := experiment.compute_shares():
        console.print(make_share_table(shares, experiment.count_drawn(arguments.step, arguments.n)))
    for table in make_label_tables(experiment.count_labels()):
        console.print(table)


if __name__ == "__main__":
    main()
