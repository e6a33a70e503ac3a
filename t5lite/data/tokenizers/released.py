"""Tokenizers of released models that come as tokenizer.json: BART's, BERT's, GPT-2's, Llama's and others.

Their ids do not change. Sentinels and specials that a config asks for and the tokenizer lacks come above the last id.
If the tokenizer's last ids are sentinels, as T5's are, it keeps these. In a workdir:

    tokenizer/tokenizer.json    as it was released
    tokenizer/vocabulary.json   {"sentinels": 100, "specials": ["[NLU]"], "below": 0, "roles": {"eos": 2, …},
                                 "begins_with_start": true, "sha256": "…", "generation": {…}}

Byte-level tokenizers and Llama's lose nothing of a text unless they normalise it, which few do. A space at the start of
a text is kept too. Llama's has two spaces there, as SentencePiece does; the `tokenizers` library sometimes has one.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.config import base_config
from t5lite.data.tokenizers.added_tokens import refuse_contradictions, refuse_other_ends, with_added
from t5lite.data.tokenizers.generation_config import read_rules, rules_from_json, rules_to_json, said_of_generation
from t5lite.data.tokenizers.text_tokenizer import (
    COPY_ANEW,
    Parts,
    check_above,
    cut_in_names,
    encode_with_names,
    growth,
    parts_of,
    sentinels_on_top,
)
from t5lite.data.tokenizers.tokenizer_json import (
    added_tokens,
    last_of_text,
    make,
    parse,
    pieces_by_id,
    prepared,
    token_table,
)
from t5lite.system.errors import UserError
from t5lite.system.files import read_bytes, read_json, write_atomically
from t5lite.system.vocabulary import CLS, MASK, SEP, Rules, TokenTable, Vocabulary

SENTINELS = base_config().tokenizer.sentinels  # unless a config says another number
TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocabulary.json"
NAMED = ("bos", "eos", "unk", "pad", "mask", "cls", "sep")  # roles whose token a file may give by name
NUMBERED = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id", "start": "decoder_start_token_id"}


@dataclasses.dataclass(frozen=True)
class Roles:
    """The id that has each role, among a tokenizer's own ids; None: no id has it."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None
    start: int | None = None
    front: int | None = None  # the id that its post-processor puts in front of a text

    @property
    def closing(self) -> int | None:
        """The id that ends a text: EOS, or [SEP] in BERT's."""
        return self.sep if self.eos is None else self.eos

    @property
    def starting(self) -> int:
        """A decoder's first input.

        If no file gives it: BOS, as in every language model with one; else [CLS], padding or EOS.
        """
        return next(each for each in (self.start, self.bos, self.cls, self.pad, self.closing) if each is not None)


class ReleasedTokenizer:
    """A tokenizer.json with sentinels and specials above its ids.

    sentinels: how many to add; ignored if the last ids are sentinels already. begins_with_start: None means as the
    tokenizer's own post-processor has it. below: how many of the added specials have ids lower than the sentinels'.
    """

    def __init__(
        self,
        file: bytes,
        roles: Roles,
        sentinels: int = SENTINELS,
        specials: Sequence[str] = (),
        begins_with_start: bool | None = None,
        below: int = 0,
    ):
        self.file, self.roles, self.below = file, roles, below
        self.rules: Rules | None = None
        check_above(sentinels, specials)
        spec = parse(file)
        used = [token for token in dataclasses.asdict(roles).values() if token is not None]
        self._tokenizer, self._adds_space = prepared(spec, used)
        self._pieces = pieces_by_id(self._tokenizer)
        if not all(0 <= token < len(self._pieces) for token in used) or roles.closing is None:
            raise UserError(f"the special tokens {used} are not all among its {len(self._pieces):,} ids, or EOS is not")
        added = added_tokens(spec)
        self._own = {token: name for token, (name, special) in added.items() if special}
        self._own |= {token: self._pieces[token] or f"<{token}>" for token in used}
        own_sentinels = sentinels_on_top(len(self._pieces), self._tokenizer.token_to_id)
        self.vocabulary = self._make_vocabulary(spec, own_sentinels, own_sentinels or sentinels, specials)
        self.begins_with_start = (
            roles.front == self.vocabulary.start if begins_with_start is None else begins_with_start
        )
        self._never = self.vocabulary.table.is_special.copy()  # ids that no text may become
        if self.vocabulary.unknown is not None:
            self._never[self.vocabulary.unknown] = False
        self._name_ids()

    def _make_vocabulary(
        self, spec: dict[str, Any], own_sentinels: int, sentinels: int, asked: Sequence[str]
    ) -> Vocabulary:
        roles, rows = self.roles, len(self._pieces)
        hidden = {roles.bos, roles.eos, roles.unk, roles.pad}
        sentinel_ids = range(rows - own_sentinels, rows)
        ids = {name: token for token, name in self._own.items() if token not in {*hidden, *sentinel_ids}}
        ids |= {
            name: token for name, token in ((MASK, roles.mask), (CLS, roles.cls), (SEP, roles.sep)) if token is not None
        }
        self.above = [name for name in asked if name not in ids]
        pieces = rows - own_sentinels
        ids |= {
            name: pieces + place + (0 if place < self.below else sentinels) for place, name in enumerate(self.above)
        }
        table = token_table(spec, self._pieces, {*self._own, *sentinel_ids})
        if table.num_bytes[self._encode([" a" if self._adds_space else "a"])[0]].sum() < 2:  # no space is put in front
            table = dataclasses.replace(table, num_bytes_first=table.num_bytes)
        missing = pieces + sentinels + len(self.above) - rows
        fills = {"num_bytes": 0, "num_bytes_first": 0, "starts_word": False, "ends_sentence": False, "is_special": True}
        table = TokenTable(**{n: np.append(getattr(table, n), np.full(missing, fill)) for n, fill in fills.items()})
        counts = {name: getattr(table, name).astype(np.int32) for name in ("num_bytes", "num_bytes_first")}
        table = dataclasses.replace(table, **counts)
        unknown = None if roles.unk == roles.closing else roles.unk  # GPT-2 calls its EOS unknown
        bos = roles.bos if roles.front == roles.bos else None
        return Vocabulary(pieces + self.below, sentinels, ids, table, roles.closing, roles.starting, bos, unknown)

    def _name_ids(self) -> None:
        vocabulary, roles = self.vocabulary, self.roles
        names = {vocabulary.size - 1 - k: f"<extra_id_{k}>" for k in range(vocabulary.sentinels)}
        self._names = {token: name for name, token in vocabulary.specials.items()} | names | self._own
        closing = {roles.bos, roles.eos}  # BART's are its [CLS] and [SEP], whose names stay text
        own = {self._own[token]: token for token in {roles.mask, roles.cls, roles.sep} - {None, *closing}}
        self._ids_of_names: Mapping[str, int] = vocabulary.specials | own | {n: token for token, n in names.items()}
        self._hidden = {vocabulary.eos, *closing, roles.pad} | ({vocabulary.start} - {roles.cls})

    @property
    def names(self) -> dict[int, str]:
        """{id: name} of each sentinel and special, the file's own and those above."""
        return self._names

    @property
    def sha256(self) -> str:
        """Identity of the tokenizer: its file, the roles, the sentinels and the specials above."""
        return hashlib.sha256(self.file + json.dumps(self._above()).encode()).hexdigest()

    def _above(self) -> dict[str, Any]:
        roles = dataclasses.asdict(self.roles)
        below = {"below": self.below} if self.below else {}
        return {"sentinels": self.vocabulary.sentinels, "specials": self.above, **below, "roles": roles}

    @property
    def base(self) -> tuple[bytes, Roles]:
        """The file and the roles of its ids."""
        return self.file, self.roles

    def grown(self, sentinels: int, specials: Sequence[str]) -> "ReleasedTokenizer":
        """See TextTokenizer.grown."""
        found = growth(self.vocabulary, self.above, self.below, sentinels, specials)
        if found is None:
            return self
        made = ReleasedTokenizer(self.file, self.roles, found[0], found[1], self.begins_with_start, found[2])
        made.rules = self.rules
        return made

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """Return the ids of `text`, int32 [n], without EOS.

        specials: names such as `<extra_id_0>`, [MASK] and the tokenizer's own names for these become ids. A name also
        stands for the space before it.
        """
        return encode_with_names(text, self._ids_of_names, self) if specials else self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Return the ids of each text, int32 [n]. Several threads compute them.

        continues: true for a text that continues the one before. If that one was cut before a single space, the ids are
        the same as if the two texts were one.
        """
        continues = [False] * len(texts) if continues is None else continues
        given = [
            f" {text}" if self._adds_space and text and not goes_on else text
            for text, goes_on in zip(texts, continues, strict=True)
        ]
        ids = self._encode(given)
        return [
            self._without_names(text, tokens) if self._never[tokens].any() else tokens
            for text, tokens in zip(given, ids, strict=True)
        ]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _without_names(self, text: str, ids: np.ndarray) -> np.ndarray:
        # A unigram model reads </s> as it reads any piece.
        parts = cut_in_names(text, [piece for piece in set(self._own.values()) if len(piece) > 1])
        if len(parts) == 1:  # normalisation made the name
            if self.vocabulary.unknown is not None:
                return np.where(self._never[ids], np.int32(self.vocabulary.unknown), ids)
            if len(text) == 1:
                return ids[~self._never[ids]]
            parts = list(text)  # one by one, they form no name
        each = [
            self._without_names(part, tokens) if self._never[tokens].any() else tokens
            for part, tokens in zip(parts, self._encode(parts), strict=True)
        ]
        return np.concatenate(each)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`.

        Sentinels and specials appear by name, unused rows as <id>. Padding, BOS and EOS are left out.
        """
        return "".join(text for text, _ in self.decode_parts(ids))

    def decode_parts(self, ids: Iterable[int], with_eos: bool = False) -> Parts:
        """Return the decoded text in parts, each with whether it is a token's name.

        with_eos: keep padding, BOS and EOS.
        """
        special = self.vocabulary.table.is_special
        return parts_of(
            [token for token in map(int, ids) if with_eos or token not in self._hidden],
            lambda token: token == self.vocabulary.unknown or (token < len(special) and not special[token]),
            lambda token: self._names.get(token, f"<{token}>"),
            self._decode,
        )

    def _decode(self, ids: list[int], continues: bool) -> str:
        if not continues and not self._adds_space:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        # Decode with an "a" before: it shows whether a word begins here, and what the decoder does to the start of a
        # text happens to the "a".
        before = self._encode([" a" if self._adds_space else "a"])[0].tolist()
        text, start = (self._tokenizer.decode(each, skip_special_tokens=False) for each in (before + ids, before))
        text = text[len(start) :]
        return text if continues else text.removeprefix(" ")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and vocabulary.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TOKENIZER_FILE, self.file)
        above = {**self._above(), "begins_with_start": self.begins_with_start, "sha256": self.sha256}
        above |= {} if self.rules is None else {"generation": rules_to_json(self.rules)}
        write_atomically(folder / VOCABULARY_FILE, json.dumps(above) + "\n")


def open_released(file: Path, sentinels: int, specials: Sequence[str]) -> ReleasedTokenizer:
    """Open the tokenizer of a release, with the roles that the files beside `file` give.

    Raises UserError if the files are damaged or contradict each other.
    """
    content = _read(file)
    with _named(file):
        spec = parse(content)
        refuse_contradictions(file.parent, spec)
        content, spec = with_added(file.parent, content, spec, make(spec).get_vocab(with_added_tokens=True))
        made, _ = prepared(spec, ())
        for token, (name, _) in added_tokens(spec).items():
            if made.token_to_id(name) != token:
                raise UserError(f"the added token {name!r} should have id {token}, but has {made.token_to_id(name)}")
        roles = _roles(file.parent, spec, pieces_by_id(made))
        bare, full = (made.encode("a", add_special_tokens=special).ids for special in (False, True))
        refuse_other_ends(file.parent, begins=full[:1] != bare[:1], ends=full[-1:] != bare[-1:])
        if full[:1] != bare[:1]:
            roles = dataclasses.replace(roles, front=full[0])
        made = ReleasedTokenizer(content, roles, sentinels, specials)
    made.rules = read_rules(file.parent, made.vocabulary)
    return made


def _roles(folder: Path, spec: dict[str, Any], pieces: Sequence[str | None]) -> Roles:
    """Find the roles by the names in the tokenizer's own files, then by the ids in the model's files."""
    ids = {piece: token for token, piece in enumerate(pieces) if piece is not None}
    named = [read_json(folder / name, COPY_ANEW) or {} for name in ("tokenizer_config.json", "special_tokens_map.json")]
    config = said_of_generation(folder)
    found: dict[str, int] = {}
    for role in NAMED:
        for names in named:
            name = names.get(f"{role}_token")
            name = name.get("content") if isinstance(name, dict) else name
            if isinstance(name, str) and name in ids:
                found.setdefault(role, ids[name])
    for role, field in NUMBERED.items():
        value = config.get(field)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and 0 <= value < len(pieces):
            found.setdefault(role, value)
    unk = spec["model"].get("unk_token")
    if isinstance(unk, str) and unk in ids:
        found.setdefault("unk", ids[unk])
    roles = Roles(**found)
    if roles.closing is None:
        raise UserError("no file beside it says which token ends a text; name it as eos_token in tokenizer_config.json")
    return roles


def closes_texts(folder: Path) -> bool:
    """Return whether the tokenizer.json of a release puts EOS after a text."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        return False
    last, name = last_of_text(parse(_read(file))), None
    for other in ("special_tokens_map.json", "tokenizer_config.json"):
        name = (read_json(folder / other, COPY_ANEW) or {}).get("eos_token", name)
    return last is not None and last == (name.get("content") if isinstance(name, dict) else name)


def reopen_released(file: Path, above: Path) -> ReleasedTokenizer:
    """Open the tokenizer that `save` wrote. above: its vocabulary.json. Raises UserError if a file is damaged."""
    names = {field.name: (int, None) for field in dataclasses.fields(Roles)}
    shape = {"sentinels": int, "specials": [str], "below": (int, None), "roles": names, "begins_with_start": bool,
             "sha256": str}  # fmt: skip
    facts = read_json(above, COPY_ANEW, shape)
    content = _read(file)
    with _named(file):
        roles = Roles(**{name: facts["roles"].get(name) for name in names})
        made = ReleasedTokenizer(
            content, roles, facts["sentinels"], facts["specials"], facts["begins_with_start"], facts.get("below") or 0
        )
        made.rules = rules_from_json(facts.get("generation"), above, made.vocabulary.rows)
    if facts["sha256"] != made.sha256:
        raise UserError(f"{file} or {above.name} beside it is damaged (they are not what they were); {COPY_ANEW}")
    return made


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {file}: {error.strerror}") from error


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Begin every UserError of the block with the file's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
