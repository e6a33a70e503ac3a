"""Open the data of a config: tokenizer, token stores and held-out text. Build the parts that the cache lacks.

    dataset = open_dataset(config, "text")
    dataset.tokenizer, dataset.train["train"], dataset.heldout["validation"]

The validation text is the first of these that exists:

    1. the source in `data.validation.source`
    2. the validation split of the training source
    3. every 20th document (or pair) of the training source
    4. if the source has fewer than 20 documents: the last twentieth of its tokens; for chat, its last conversation;
       for pairs, an error

If `data.test.source` is set, `dataset.heldout["test"]` holds the text of this source.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from t5lite.config import member_fields
from t5lite.data.answered import Scale, measure_scale
from t5lite.data.build import HELDOUT_EVERY, build_once
from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.opening import chat_folder, check_chat_source, open_chat
from t5lite.data.closed_sets import Labels, find_labels, find_member_labels, join_labels, refuse_unknown_labels
from t5lite.data.columns import Columns, read_columns
from t5lite.data.kinds import KINDS, iterate_texts
from t5lite.data.references import References
from t5lite.data.sources import Source, available_splits, open_source
from t5lite.data.store import FORMAT, Span, TokenStore
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.data.tokenizers.training import TRAINING_THREADS, sample_chunks, train_tokenizer
from t5lite.system.cache import atomic_folder, cache_dir, fingerprint
from t5lite.system.errors import UserError, nearest
from t5lite.system.progress import progress

VALIDATION, TEST = "validation", "test"  # names of held-out sets, and of their fields in config.data


@dataclasses.dataclass(frozen=True)
class Member:
    """A part of the training mixture.

    weight: how often its rows are drawn, relative to rows of other members. labels: whether its targets are labels of a
    closed set; None: `data.labels` decides.
    """

    source: str
    split: str | None
    weight: float
    columns: Columns
    labels: bool | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Opened data. `train` and `heldout` map names to spans of token stores.

    The held-out spans are "validation" (in a mixture: one "validation_NAME" for each member) and "test".

    weights: the weight of each training member. labels: the closed set of targets, or of tags, in a fixed order; None
    if targets are free text. member_labels: the same for each member of a mixture whose members have targets of their
    own; {} if all members share one set. heldout_members: the members to which the sets "validation" and "test" belong,
    if config.data names them. identity: fingerprints; a run compares them to check that its data is still the same.
    rows: the number of documents or pairs in each source, with the held-out ones. scale: of numbers in the targets;
    None if targets are no numbers.
    references: the number of pairs with several references in each source that has such pairs.
    chat: turns conversations into tokens; None: the data is no chat.
    """

    tokenizer: TextTokenizer
    train: dict[str, Span]
    weights: dict[str, float]
    heldout: dict[str, Span]
    labels: Labels
    identity: dict[str, str]
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    scale: Scale | None = None
    references: dict[str, int] = dataclasses.field(default_factory=dict)
    chat: ChatEncoder | None = None
    member_labels: dict[str, Labels] = dataclasses.field(default_factory=dict)
    heldout_members: dict[str, str] = dataclasses.field(default_factory=dict)

    def find_split_labels(self, split: str) -> Labels:
        """Return the closed set of targets of a held-out set, or of the training pairs "train_NAME" of a member."""
        member = self.heldout_members.get(split, split.partition("_")[2])
        return self.member_labels.get(member, self.labels)

    @property
    def heldout_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the held-out tokens. Metrics of two runs are comparable if the fingerprints are equal."""
        return {name: span.fingerprint + References(span.store).fingerprint for name, span in self.heldout.items()}


def open_dataset(
    config: ConfigDict,
    kind: str,
    tokenizer: TextTokenizer | None = None,
    scale: Scale | None = None,
    needs_labels: bool = False,
    has_member_labels: bool = False,
) -> Dataset:
    """Open the data of `config`. Build the tokenizer and the stores that the cache lacks.

    Args:
        kind: a key of `kinds.KINDS`.
        tokenizer: None: open the tokenizer of the config.
        scale: of numbers, if the run goes on from a run with this scale. None: measured on the training targets.
        needs_labels: whether the targets must be labels of a closed set.
        has_member_labels: whether each member of a mixture has a closed set of targets, or free text, of its own.
    """
    _check_fields(config, kind)
    opener = _Opener(config, tokenizer or open_tokenizer(config, kind), kind)
    members = _read_members(config)
    heldout = opener.open_given_heldout(members)
    given, hold_out, train = tuple(heldout), VALIDATION not in heldout, {}
    for name, member in members.items():
        single = len(members) == 1
        where = "data.train" if single else f"data.train.mixture.{name}"
        train[name], heldout_span = opener.open_train(where, member, hold_out)
        if hold_out:
            heldout[VALIDATION if single else f"{VALIDATION}_{name}"] = heldout_span
    wanted, member_labels, heldout_members = config.data.labels, {}, opener.heldout_members
    if has_member_labels and kind == "pairs" and len(members) > 1:
        wishes = {name: wanted if member.labels is None else member.labels for name, member in members.items()}
        member_labels = find_member_labels(wishes, train, heldout)
        labels = join_labels(member_labels)
        _refuse_unknown_labels({name: heldout[name] for name in given}, labels, member_labels, heldout_members)
    else:
        wanted = True if needs_labels else wanted
        _refuse_own_labels(members)
        labels = find_labels(wanted, kind, train.values(), heldout)
    if kind == "numbers" and scale is None:
        scale = measure_scale([span.store for span in train.values()])
    weights = {name: member.weight for name, member in members.items()}
    facts = (opener.identity, opener.rows, scale, opener.references, opener.chat, member_labels, heldout_members)
    return Dataset(opener.tokenizer, train, weights, heldout, labels, *facts)


def open_heldout(
    config: ConfigDict,
    kind: str,
    tokenizer: TextTokenizer,
    labels: Sequence[str] | None,
    scale: Scale | None = None,
    member_labels: Mapping[str, Sequence[str] | None] | None = None,
) -> Dataset:
    """Open only the sources in `data.validation` and `data.test`. labels, scale, member_labels: those of training."""
    opener = _Opener(config, tokenizer, kind)
    heldout = opener.open_given_heldout(_read_members(config))
    labels = None if labels is None else tuple(labels)
    own = {name: None if each is None else tuple(each) for name, each in (member_labels or {}).items()}
    _refuse_unknown_labels(heldout, labels, own, opener.heldout_members)
    facts = (opener.identity, opener.rows, scale, opener.references, opener.chat, own, opener.heldout_members)
    return Dataset(tokenizer, {}, {}, heldout, labels, *facts)


def _refuse_unknown_labels(
    heldout: Mapping[str, Span], labels: Labels, member_labels: Mapping[str, Labels], members: Mapping[str, str]
) -> None:
    """Raise UserError for a held-out target outside the closed set of its task. members: see `Dataset`."""
    for name, span in heldout.items():
        known = member_labels.get(members.get(name), labels)
        if known is not None:
            refuse_unknown_labels({name: span}, known)


def _check_fields(config: ConfigDict, kind: str) -> None:
    """Refuse data.labels and data.train.number_step where this kind of data gives them no meaning."""
    wanted, always = config.data.labels, KINDS[kind].has_labels
    if kind != "pairs" and wanted not in (None, always):
        raise UserError(f"config.data.labels={wanted}: the answers of this task are {'always' if always else 'never'} "
                        "labels; unset data.labels, or choose another config.objective.answer")  # fmt: skip
    step = config.data.train.number_step
    if step is not None and kind != "number_texts":
        raise UserError(f"config.data.train.number_step={step}: only config.objective.answer=number_text rounds its "
                        "targets; set this answer, or unset number_step")  # fmt: skip


def _refuse_own_labels(members: Mapping[str, Member]) -> None:
    for name, member in members.items():
        if member.labels is not None:
            raise UserError(
                f"config.data.train.mixture.{name}.labels: only the members of a mixture of pairs with text as answers "
                "have labels of their own; unset it, or set config.data.labels"
            )


class _Opener:
    """Open stores one by one, and note their fingerprints and sizes."""

    def __init__(self, config: ConfigDict, tokenizer: TextTokenizer, kind: str):
        self.config, self.tokenizer, self.kind = config, tokenizer, kind
        self.identity = {"tokenizer": tokenizer.sha256}
        self.rows: dict[str, int] = {}
        self.heldout_members: dict[str, str] = {}
        self.references: dict[str, int] = {}
        self.chat: ChatEncoder | None = None
        if kind == "chat":
            self.chat, self._layout = open_chat(config, tokenizer)
            self.identity["tokenizer.chat_template"] = self.chat.template.sha256

    def _open_stores(self, name: str, member: Member, default_split: str, hold_out_every: int = 0) -> tuple[Span, Span]:
        """Return the spans of the two stores of a source, train/ and heldout/.

        Args:
            name: the config field, for errors.
            hold_out_every: every such document (or pair, or conversation) goes to heldout; 0: none does.
        """
        source = _open(member.source, member.columns, member.split, default_split, self.config.data.train.quoting)
        if self.chat is not None:
            check_chat_source(name, member.source, member.columns, source)
            folder = chat_folder(source, self.chat, self._layout, hold_out_every)
        else:
            folder = store_folder(source, member.columns, self.tokenizer, self.kind, hold_out_every > 0)
        spans = Span.cover(TokenStore(folder / "train")), Span.cover(TokenStore(folder / "heldout"))
        if spans[0].store.num_documents == 0:
            no_room = "no conversation that fits into config.objective.inputs_length; raise it"
            left_out = self.chat is not None and spans[0].store.card["left_out"]
            raise UserError(
                f"{name}: {member.source} has {no_room if left_out else 'no text; give a source with text'}"
            )
        self.rows[name] = sum(span.store.num_documents for span in spans) // KINDS[self.kind].documents
        # Fingerprints are made from tokens, not from files. So a copy of the text on another machine is the same data.
        self.identity[name] = "-".join(span.store.card["sha256"][:16] for span in spans)
        references = [References(span.store) for span in spans]
        if count := sum(each.num_pairs for each in references):
            self.references[name] = count
            self.identity[name] += "".join(each.fingerprint for each in references)
        return spans

    def open_train(self, where: str, member: Member, hold_out: bool) -> tuple[Span, Span]:
        """Return the span to train on and, with `hold_out`, a span to evaluate on. where: the member's config field."""
        splits, trains_on = available_splits(member.source) if hold_out else (), member.split or "train"
        # The source's own validation split is held out, unless training reads it: "train[:10%]" counts as train.
        if "validation" in splits and trains_on.partition("[")[0] == "train" and "+" not in trains_on:
            validation = dataclasses.replace(member, split="validation")
            train, _ = self._open_stores(where, member, "train")
            return train, self._open_stores(f"{where}.validation", validation, "validation")[0]
        train, heldout = self._open_stores(where, member, "train", HELDOUT_EVERY if hold_out else 0)
        if not hold_out or heldout.store.num_documents:
            return train, heldout
        if self.kind == "chat" and (count := train.store.card["conversations"]) > 1:
            return self._open_stores(where, member, "train", hold_out_every=count)  # the last one
        if self.kind != "text":
            raise UserError(
                f"data.train: {member.source} has {self._name_few()}, too few to hold some out; set "
                "data.validation.source"
            )
        return train.split(1 / HELDOUT_EVERY)

    def _name_few(self) -> str:
        return "one conversation" if self.kind == "chat" else f"fewer than {HELDOUT_EVERY} pairs"

    def open_given_heldout(self, members: Mapping[str, Member]) -> dict[str, Span]:
        """Return the spans of the sources in `data.validation` and `data.test`, if these sources are set.

        Note in `heldout_members` which of them belong to a member of the training mixture.
        """
        spans = {}
        for name in (VALIDATION, TEST):
            fields = self.config.data[name]
            if fields.source is not None:
                columns = read_columns(fields, self.config.data.train, f"data.{name}")
                if fields.member is not None:
                    columns = _find_member(fields, members, f"config.data.{name}").columns
                    self.heldout_members[name] = fields.member
                member = Member(fields.source, fields.split, 1.0, columns)
                spans[name] = self._open_stores(f"data.{name}", member, name)[0]
        return spans


def _read_members(config: ConfigDict) -> dict[str, Member]:
    train = config.data.train
    if train.source is not None:
        return {"train": Member(train.source, train.split, 1.0, read_columns(train, train, "data.train"))}
    members, known = {}, member_fields("data.train")
    for name, fields in train.mixture.items():
        where = f"config.data.train.mixture.{name}"
        unknown = set(fields) - set(known) if isinstance(fields, ConfigDict) else {repr(fields)}
        if unknown or not fields.get("source"):
            problem = f"unknown field {min(unknown)}" if unknown else "no source"
            raise UserError(f"{where}: {problem}; it takes {', '.join(known)}")
        weight = fields.get("weight", 1.0)
        if not (isinstance(weight, int | float) and 0 < weight < np.inf):
            raise UserError(f"{where}.weight: must be a positive number, is {weight!r}")
        for group in ("columns", "template"):
            parts = fields.get(group, ConfigDict())
            if not isinstance(parts, ConfigDict) or set(parts) - set(known[group]):
                raise UserError(f"{where}.{group}: must be a group of fields, out of {', '.join(known[group])}")
        columns = read_columns(fields, train, f"data.train.mixture.{name}")
        members[name] = Member(fields.source, fields.get("split"), float(weight), columns, fields.get("labels"))
    return members


def _find_member(fields: ConfigDict, members: Mapping[str, Member], where: str) -> Member:
    """Return the member of the training mixture that the held-out source with these `fields` names."""
    if fields.member not in members:
        raise UserError(f"{where}.member: the training mixture has no member {fields.member!r}; "
                        f"{nearest(fields.member, members)}")  # fmt: skip
    own = (*fields.columns.values(), *fields.template.values(), fields.templates)
    if any(value is not None for value in own):
        raise UserError(f"{where}: columns and templates are those of the member {fields.member!r}; unset them, or "
                        "unset member")  # fmt: skip
    return members[fields.member]


def _open(spec: str, columns: Columns, split: str | None, default: str, quoting: str) -> Source:
    """Open `split` of a source. None: the only split of the source, or `default` if there are several."""
    if split is None:
        available = available_splits(spec)
        split = available[0] if len(available) == 1 else default
    return open_source(spec, columns, split, quoting)


def open_tokenizer(config: ConfigDict, kind: str) -> TextTokenizer:
    """Open the tokenizer at tokenizer.path.

    Without a path: train one on the text of tokenizer.source, or on the training sources, and cache it.
    """
    fields = config.tokenizer
    specials = tuple(fields.specials or ())
    if fields.path is not None:
        return load_tokenizer(fields.path, fields.sentinels, specials)
    members, quoting = _read_members(config).values(), config.data.train.quoting
    columns = read_columns(config.data.train, config.data.train, "data.train")
    if fields.source is not None:
        columns, kind = Columns(), "text"
        members = [Member(fields.source, None, 1.0, columns)]
    sources = [_open(each.source, each.columns, each.split, "train", quoting) for each in members]
    facts = {
        "sources": [source.fingerprint() for source in sources],  # each fingerprint includes the columns
        "columns": columns.facts(),
        "sentencepiece": version("sentencepiece"),
        "kind": kind,
        "threads": TRAINING_THREADS,
        **{name: fields[name] for name in ("vocab_size", "sentinels", "sample_bytes")},
        "specials": list(specials),
    }
    folder = cache_dir() / "tokenizers" / fingerprint(facts)
    if not folder.is_dir():
        with progress(
            "reading text for the tokenizer", sum(s.num_bytes() or 0 for s in sources), show_count=False
        ) as advance:
            chunks = sample_chunks(iterate_texts(sources, kind, advance), fields.sample_bytes)
        with progress(f"training a tokenizer of {fields.vocab_size} pieces", 1, show_count=False) as advance:
            tokenizer = train_tokenizer(chunks, fields.vocab_size, fields.sentinels, specials)
            advance(1)
        with atomic_folder(folder) as temporary:
            tokenizer.save(temporary)
    return load_tokenizer(str(folder), fields.sentinels, specials)


def store_folder(source: Source, columns: Columns, tokenizer: TextTokenizer, kind: str, hold_out: bool) -> Path:
    """Return the folder with the stores of a source, train/ and heldout/. Build the stores if the cache lacks them."""
    facts = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "columns": columns.facts(),
        "tokenizer": tokenizer.sha256,
        "kind": kind,
        "heldout": HELDOUT_EVERY if hold_out else 0,
    }

    def build(folder: Path, advance: Callable[[int], None]) -> None:
        KINDS[kind].build(folder, KINDS[kind].read(source), tokenizer, hold_out, advance)

    return build_once(facts, source.num_bytes() or 0, build)
