"""Texts with a known answer that is no plain text: a number, or a set of labels. Read and store them.

    read_numbers(source)         Answered("A man sings. \\t A man is singing.", 4.6, "sts.jsonl, line 3")
    read_number_texts(source)    ("A man sings. \\t A man is singing.", "4.6")
    read_label_sets(source)      Answered("what a day!", ["joy", "surprise"], "emotions.jsonl, line 7")

In the store, document 2i holds the tokens of text i, and document 2i + 1 its answer: the eight bytes of a float64, or
the numbers of the labels in "labels" of the card. Both are written as ids from `first_tag` on, because a document must
not contain EOS.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.build import MAX_LABELS, Advance, Part, first_tag, group_in_blocks, write_stores
from t5lite.data.columns import Columns, Record
from t5lite.data.files import split_text
from t5lite.data.readers import check_column, read_text
from t5lite.data.sources import Source
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError


class Answered(NamedTuple):
    """A text with its answer, and the place (file and line), for errors."""

    inputs: str
    answer: Any
    place: str


def read_numbers(source: Source) -> Iterator[Answered]:
    """Yield each text with its number, a float. Raises UserError for a target that is no finite number."""
    columns = source.columns
    for record in source.records(columns.list_pair_columns()):
        inputs, text = columns.make_pair(record.index, record.read)
        try:
            number = float(text if "_" not in text else "no number")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{record.place}: the target {text[:60]!r} is not a number; correct it, or set another "
                "config.objective.answer"
            )
        yield Answered(inputs, number, record.place)


def read_number_texts(source: Source) -> Iterator[tuple[str, str]]:
    """Yield each text with its number, written as text and rounded by `columns.number_step`."""
    step = source.columns.number_step
    for item in read_numbers(source):
        yield item.inputs, f"{item.answer:.10g}" if step is None else round_to_text(item.answer, step)


def round_to_text(number: float, step: float) -> str:
    """Return a number, rounded to the nearest multiple of `step`, with as many decimals as `step` has.

    A number in the middle between two multiples becomes the even multiple, as in T5's code.

        round_to_text(3.91, 0.2)     "4.0"
        round_to_text(4.1, 0.2)      "4.0"      4.1 = 20.5 · 0.2, and 20 is even
    """
    unit = Decimal(repr(step)).normalize()
    with localcontext(prec=400):  # the largest float64 has 309 digits
        count = (Decimal(repr(number)) / unit).quantize(Decimal(1), ROUND_HALF_EVEN)
        return f"{count * unit + 0:.{max(-unit.as_tuple().exponent, 0)}f}"


def read_label_sets(source: Source) -> Iterator[Answered]:
    """Yield each text with its labels, a list of texts. Raises UserError for a target that is no list of labels."""
    columns = source.columns
    refuse_target_template(columns, "labels")
    for record in source.records([*columns.list_input_columns(), columns.targets]):
        yield Answered(columns.make_inputs(record.index, record.read), _read_labels(record, columns), record.place)


def refuse_target_template(columns: Columns, answers: str) -> None:
    """Raise UserError for a template of the targets."""
    for _, targets in columns.pair_templates:
        if targets != f"{{{columns.targets}}}":
            raise UserError(f"config.data.train.template.targets: {answers} have no template; leave it unset")


def _read_labels(record: Record, columns: Columns) -> list[str]:
    name, place = columns.targets, record.place
    check_column(name, record.row, place)
    value = record.row[name]
    if not isinstance(value, list):
        raise UserError(f"{place}: column {name!r} is no list; give the labels as a list of texts, in .jsonl, "
                        ".parquet or .arrow files")  # fmt: skip
    labels = [read_text({name: item}, name, place) for item in value]
    if len(set(labels)) < len(labels):
        raise UserError(f"{place}: a label stands twice in {labels}; remove one")
    return labels


def encode_bytes(data: bytes, eos: int) -> np.ndarray:
    """Return the ids of bytes in a store, int32 [n]."""
    return np.frombuffer(data, np.uint8).astype(np.int32) + first_tag(eos)


def decode_bytes(document: np.ndarray, eos: int) -> bytes:
    """Return the bytes of a document of a store. The document ends in EOS."""
    return (document[:-1].astype(np.int64) - first_tag(eos)).astype(np.uint8).tobytes()


def build_numbers(
    folder: Path, items: Iterable[Answered], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout of texts with numbers."""
    eos = tokenizer.vocabulary.eos
    blocks = _encode_blocks(
        items, tokenizer, advance, lambda item: encode_bytes(np.float64(item.answer).tobytes(), eos)
    )
    write_stores(folder, blocks, tokenizer, hold_out, 2, lambda name: {"labels": None})


class Scale(NamedTuple):
    """The mean of the training numbers, and their standard deviation (1 if all numbers are equal).

    A model learns (number - mean) / deviation.
    """

    mean: float
    deviation: float


def read_number(store: TokenStore, pair: int) -> float:
    """Return the number of a pair in a store of `build_numbers`."""
    return float(np.frombuffer(decode_bytes(store.document(2 * pair + 1), store.eos), np.float64)[0])


def measure_scale(stores: Iterable[TokenStore]) -> Scale:
    """Return the scale of all numbers in `stores`."""
    numbers = np.array([read_number(store, pair) for store in stores for pair in range(store.num_documents // 2)])
    with np.errstate(over="ignore"):
        mean, deviation = float(numbers.mean()), float(numbers.std())
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise UserError("data.train: the targets are too large for float64 arithmetic; divide them by a constant")
    return Scale(mean, deviation or 1.0)


def build_label_sets(
    folder: Path, items: Iterable[Answered], tokenizer: TextTokenizer, hold_out: bool, advance: Advance
) -> None:
    """Write the stores `folder`/train and `folder`/heldout of texts with sets of labels.

    In both cards, "tags" lists the labels in the order of their ids, "labels" counts them in the whole source, and
    "places" says where each first occurs. Raises UserError for more than 1,000 labels.
    """
    places: dict[str, str] = {}
    counts: Counter[str] = Counter()
    eos = tokenizer.vocabulary.eos

    def encode(item: Answered) -> np.ndarray:
        for label in item.answer:
            places.setdefault(label, item.place)
        if len(places) > MAX_LABELS:
            raise UserError(f"{item.place}: this is label number {len(places):,}; use at most {MAX_LABELS:,} labels")
        counts.update(item.answer)
        numbers = {label: number for number, label in enumerate(places)}
        return np.array([first_tag(eos) + numbers[label] for label in item.answer], np.int32)

    def make_card(name: str) -> dict[str, Any]:
        return {"labels": dict(sorted(counts.items())), "tags": list(places), "places": places}

    write_stores(folder, _encode_blocks(items, tokenizer, advance, encode), tokenizer, hold_out, 2, make_card)


def _encode_blocks(
    items: Iterable[Answered], tokenizer: TextTokenizer, advance: Advance, encode: Callable[[Answered], np.ndarray]
) -> Iterator[list[Part]]:
    for block in group_in_blocks(items, lambda item: len(item.inputs) + 64):
        parts = []
        for item, tokens in zip(block, encode_texts(tokenizer, [item.inputs for item in block]), strict=True):
            parts += [Part(tokens, len(item.inputs.encode()), True), Part(encode(item), None, True)]
        yield parts
        advance(sum(part.num_bytes or 0 for part in parts))


def encode_texts(tokenizer: TextTokenizer, texts: list[str]) -> list[np.ndarray]:
    """Return the ids of each text, int32 [n]. Long texts are encoded in fragments."""
    fragments = [[fragment.text for fragment in split_text(text)] for text in texts]
    flat = [fragment for each in fragments for fragment in each]
    continues = [i > 0 for each in fragments for i in range(len(each))]
    ids = iter(tokenizer.encode_many(flat, continues))
    return [np.concatenate([next(ids) for _ in each]) for each in fragments]
