"""From a config to data that is ready to read: the tokenizer, the token stores, what is held out. Built where missing.

    dataset = open_dataset(config, supervised=False)
    dataset.tokenizer, dataset.train["train"], dataset.validation["validation"]

Held-out text is, in this order: `data.validation.source`; the source's own validation split; every 20th document of
the training source; the last twentieth of its tokens, where it has too few documents for that.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from t5lite.data.build import HELDOUT_EVERY, build_pairs, build_text
from t5lite.data.cache import atomic_folder, cache_dir, fingerprint
from t5lite.data.packing import PackingPlan, one_a_row, pack
from t5lite.data.sources import Columns, Source, available_splits, open_source
from t5lite.data.store import FORMAT, Span, TokenStore
from t5lite.data.tokenizer import TRAINING_THREADS, Tokenizer, load_tokenizer, sample_chunks, train_tokenizer
from t5lite.errors import UserError
from t5lite.progress import progress

FEW_LABELS, PAIRS_PER_LABEL = 100, 10


@dataclasses.dataclass(frozen=True)
class Member:
    """A part of the training mixture: where it comes from, and how often its rows are drawn."""

    source: str
    split: str | None
    weight: float


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Opened data. `train` and `validation` map names to stretches of token stores.

    weights: of the training members. labels: the targets of a closed set, in a fixed order; None where targets are
    free text. identity: fingerprints by which a run knows its data again.
    """

    tokenizer: Tokenizer
    train: dict[str, Span]
    weights: dict[str, float]
    validation: dict[str, Span]
    labels: tuple[str, ...] | None
    identity: dict[str, str]


def open_dataset(config: ConfigDict, supervised: bool, given_tokenizer: Path | None = None) -> Dataset:
    """Open the data of `config`, building the tokenizer and the stores that the cache lacks.

    given_tokenizer: a workdir whose tokenizer is used where the config names none (that of `init_from`).
    """
    members = _members(config)
    columns = Columns(**config.data.train.columns)
    tokenizer = open_tokenizer(config, supervised, given_tokenizer)
    validation = config.data.validation

    def build(source: Source, hold_out: bool) -> Path:
        return store_folder(source, columns, tokenizer, supervised, hold_out)

    train, heldout, identity = {}, {}, {"tokenizer": tokenizer.sha256}
    for name, member in members.items():
        own = _own_validation(member) if validation.source is None else None
        folder = build(
            _open(member.source, columns, member.split or "train"), validation.source is None and own is None
        )
        train[name], identity[name] = Span.whole(TokenStore(folder / "train")), folder.name
        if train[name].store.num_documents == 0:
            raise UserError(f"data.train: {member.source} has no text")
        if own is not None:
            other = build(_open(member.source, columns, own), hold_out=False)
            heldout[name] = Span.whole(TokenStore(other / "train"))
        elif validation.source is None:
            heldout[name] = Span.whole(TokenStore(folder / "heldout"))
            if heldout[name].store.num_documents == 0:
                train[name], heldout[name] = _cut(train[name], member.source, supervised)
    if validation.source is not None:
        source = _open(validation.source, columns, validation.split or "validation")
        folder = build(source, hold_out=False)
        heldout = {"validation": Span.whole(TokenStore(folder / "train"))}
        identity["validation"] = folder.name
        if heldout["validation"].store.num_documents == 0:
            raise UserError(f"data.validation: {validation.source} has no text")
    elif len(members) == 1:
        heldout = {"validation": heldout["train"]}
    else:
        heldout = {f"validation_{name}": span for name, span in heldout.items()}
    labels = _labels(config.data.labels, train, heldout) if supervised else None
    weights = {name: member.weight for name, member in members.items()}
    return Dataset(tokenizer, train, weights, heldout, labels, identity)


def _members(config: ConfigDict) -> dict[str, Member]:
    train = config.data.train
    if train.source is not None:
        return {"train": Member(train.source, train.split, 1.0)}
    members = {}
    for name, fields in train.mixture.items():
        unknown = set(fields) - {"source", "split", "weight"}
        if unknown or "source" not in fields:
            problem = f"unknown field {min(unknown)}" if unknown else "no source"
            raise UserError(f"config.data.train.mixture.{name}: {problem}; it takes source, split and weight")
        members[name] = Member(fields.source, fields.get("split"), float(fields.get("weight", 1.0)))
        if members[name].weight <= 0:
            raise UserError(f"config.data.train.mixture.{name}.weight: must be positive")
    return members


def _open(spec: str, columns: Columns, split: str) -> Source:
    available = available_splits(spec)
    # A files: source has one split, whatever it is asked for.
    return open_source(spec, columns, split if split in available or len(available) > 1 else available[0])


def _own_validation(member: Member) -> str | None:
    """The source's validation split, where it has one and training does not use it."""
    splits = available_splits(member.source)
    return "validation" if "validation" in splits and (member.split or "train") == "train" else None


def _cut(span: Span, source: str, supervised: bool) -> tuple[Span, Span]:
    if supervised:
        raise UserError(
            f"data.train: {source} has fewer than {HELDOUT_EVERY} pairs, too few to hold some out; "
            "set data.validation.source"
        )
    return span.split(1 / HELDOUT_EVERY)


def open_tokenizer(config: ConfigDict, supervised: bool, given: Path | None = None) -> Tokenizer:
    """The tokenizer of `config`: the one at tokenizer.path, else that of the workdir `given`, else one trained."""
    fields = config.tokenizer
    if fields.path is not None or given is not None:
        return load_tokenizer(fields.path or str(given), fields.sentinels, fields.specials)
    columns = Columns(**config.data.train.columns)
    sources = [_open(m.source, columns, m.split or "train") for m in _members(config).values()]
    facts = {
        "sources": [source.fingerprint() for source in sources],
        "columns": dataclasses.asdict(columns),
        "sentencepiece": version("sentencepiece"),
        "threads": TRAINING_THREADS,
        **{name: fields[name] for name in ("vocab_size", "sentinels", "sample_bytes")},
        "specials": list(fields.specials),
    }
    folder = cache_dir() / "tokenizers" / fingerprint(facts)
    if not folder.is_dir():
        with progress(
            "reading text for the tokenizer", sum(s.num_bytes() or 0 for s in sources), show_count=False
        ) as advance:
            chunks = sample_chunks(_texts(sources, supervised, advance), fields.sample_bytes)
        with progress(f"training a tokenizer of {fields.vocab_size} pieces", 1, show_count=False) as advance:
            tokenizer = train_tokenizer(chunks, fields.vocab_size, fields.sentinels, fields.specials)
            advance(1)
        with atomic_folder(folder) as temporary:
            tokenizer.save(temporary)
    return load_tokenizer(str(folder), fields.sentinels, fields.specials)


def _texts(sources: Iterable[Source], supervised: bool, advance: Callable[[int], None]) -> Iterator[str]:
    for source in sources:
        parts = (
            (text for pair in source.pairs() for text in pair) if supervised else (f.text for f in source.fragments())
        )
        for text in parts:
            advance(len(text))
            yield text


def store_folder(source: Source, columns: Columns, tokenizer: Tokenizer, supervised: bool, hold_out: bool) -> Path:
    """The folder of the source's stores, train/ and heldout/, built where the cache lacks it."""
    facts = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "columns": dataclasses.asdict(columns),
        "tokenizer": tokenizer.sha256,
        "supervised": supervised,
        "heldout": HELDOUT_EVERY if hold_out else 0,
    }
    folder = cache_dir() / "stores" / fingerprint(facts)
    if not folder.is_dir():
        with (
            atomic_folder(folder) as temporary,
            progress("encoding text", source.num_bytes() or 0, show_count=False) as advance,
        ):
            if supervised:
                build_pairs(temporary, source.pairs(), tokenizer, hold_out, advance)
            else:
                build_text(temporary, source.fragments(), tokenizer, hold_out, advance)
            (temporary / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder


def pair_plan(
    store: TokenStore, inputs_length: int, targets_length: int, packed: bool, limit: int | None = None, seed: int = 0
) -> PackingPlan:
    """Which pairs of `store` share a row. `limit` keeps the first so many of a fixed random order (`seed`)."""
    lengths = np.diff(np.asarray(store.ends), prepend=0).reshape(-1, 2)
    order = np.random.default_rng(seed).permutation(len(lengths)) if packed or limit else np.arange(len(lengths))
    chosen = order[:limit]
    if not packed:
        return one_a_row(chosen, inputs_length, targets_length)
    return pack(lengths, chosen, inputs_length, targets_length)


def _labels(wanted: bool | None, train: dict[str, Span], heldout: dict[str, Span]) -> tuple[str, ...] | None:
    """The closed set of training targets, if they are one; held-out targets outside it are refused."""
    if wanted is False:
        return None
    counts: dict[str, Any] = {}
    for span in train.values():
        if span.store.card["labels"] is None:
            counts = {}
            break
        for label, count in span.store.card["labels"].items():
            counts[label] = counts.get(label, 0) + count
    closed = 0 < len(counts) <= FEW_LABELS and sum(counts.values()) >= PAIRS_PER_LABEL * len(counts)
    if not counts or not (wanted or closed):
        if wanted:
            raise UserError("config.data.labels: the training targets are no closed set (over 1,000 of them)")
        return None
    for name, span in heldout.items():
        strange = sorted(set(span.store.card["labels"] or ()) - set(counts))
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise UserError(
                f"data.{name}: the label {strange[0]!r}{more} never occurs in the training targets; mend the file, or "
                "set config.data.labels=False if targets are free text"
            )
    return tuple(sorted(counts))
