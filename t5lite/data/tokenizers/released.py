"""Tokenizers of released models that come as tokenizer.json: BART's, BERT's, GPT-2's, Llama's and others.

Their ids do not change. Sentinels and specials that a config asks for and the tokenizer lacks come above the last id.
If the tokenizer's last ids are sentinels, as T5's are, it keeps these. In a workdir:

    tokenizer/tokenizer.json    as it was released
    tokenizer/vocabulary.json   with "roles": {"eos": 2, …} and "begins_with_start": true

Byte-level tokenizers and Llama's lose nothing of a text unless they normalise it, which few do. A space at the start of
a text is kept too. Llama's has two spaces there, as SentencePiece does; the `tokenizers` library sometimes has one.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.tokenizers.added_tokens import add_to_spec, refuse_contradictions
from t5lite.data.tokenizers.release_files import TOKENIZER_FILE, ReleaseFiles, name_in_errors, read_file
from t5lite.data.tokenizers.text_tokenizer import (
    SENTINELS,
    TextTokenizer,
    cut_in_names,
)
from t5lite.data.tokenizers.tokenizer_json import (
    build,
    build_for_text,
    describe_pieces,
    find_ends,
    list_added,
    list_pieces,
    parse,
)
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, MASK, SEP

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


class ReleasedTokenizer(TextTokenizer):
    """A tokenizer.json with sentinels and specials above its ids.

    content: of the tokenizer.json. sentinels: how many to add; ignored if the last ids are sentinels already. below:
    see TextTokenizer.
    """

    FILE = TOKENIZER_FILE

    def __init__(
        self, content: bytes, roles: Roles, sentinels: int = SENTINELS, specials: Sequence[str] = (), below: int = 0
    ):
        self.content, self.roles, self.base = content, roles, (content, roles)
        spec = parse(content)
        used = [token for token in dataclasses.asdict(roles).values() if token is not None]
        self._tokenizer, self._adds_space = build_for_text(spec, used)
        pieces = list_pieces(self._tokenizer)
        if not all(0 <= token < len(pieces) for token in used) or roles.closing is None:
            raise UserError(f"the special tokens {used} are not all among its {len(pieces):,} ids, or EOS is not")
        self._own = {token: name for token, (name, special) in list_added(spec).items() if special}
        self._own |= {token: pieces[token] or f"<{token}>" for token in used}
        facts = describe_pieces(spec, pieces, self._own)
        first = (facts[token] for token in self._encode([" a" if self._adds_space else "a"])[0])
        puts_space = sum(each.num_bytes for each in first if each) >= 2
        self._set_vocabulary(
            facts,
            self._tokenizer.token_to_id,
            self._own_specials(),
            (sentinels, specials, below),
            puts_space,
            eos=roles.closing,
            start=roles.starting,
            bos=roles.bos if roles.front == roles.bos else None,
            unknown=None if roles.unk == roles.closing else roles.unk,  # GPT-2 calls its EOS unknown
        )
        self.names |= self._own
        framing = {roles.bos, roles.eos}  # BART's are its [CLS] and [SEP], whose names stay text
        self.readable |= {self._own[token]: token for token in {roles.mask, roles.cls, roles.sep} - {None, *framing}}
        self.hidden = {roles.closing, *framing, roles.pad} | ({roles.starting} - {roles.cls})
        self.begins_with_start = roles.front == roles.starting

    def _own_specials(self) -> dict[str, int]:
        """Return {name: id} of the tokenizer's own specials, also by the names that the objectives have for them."""
        roles = self.roles
        ids = {name: token for token, name in self._own.items()}
        ids = {name: token for name, token in ids.items() if token not in {roles.bos, roles.eos, roles.unk, roles.pad}}
        named = {MASK: roles.mask, CLS: roles.cls, SEP: roles.sep}
        return ids | {name: token for name, token in named.items() if token is not None}

    def _identity(self) -> Any:
        return {**self._added(), "roles": dataclasses.asdict(self.roles)}

    def _facts(self) -> dict[str, Any]:
        return {**self._identity(), "begins_with_start": self.begins_with_start}

    def _with_added(self, sentinels: int, specials: Sequence[str], below: int) -> "ReleasedTokenizer":
        return ReleasedTokenizer(self.content, self.roles, sentinels, specials, below)

    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
        given = [
            f" {text}" if self._adds_space and text and not goes_on else text
            for text, goes_on in zip(texts, continues, strict=True)
        ]
        return self._encode_as_text(given)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _encode_as_text(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text. A unigram model reads </s> as it reads any piece; here it becomes text."""
        return [
            ids if self.is_text[ids].all() else self._without_names(text, ids)
            for text, ids in zip(texts, self._encode(texts), strict=True)
        ]

    def _without_names(self, text: str, ids: np.ndarray) -> np.ndarray:
        parts = cut_in_names(text, [piece for piece in set(self._own.values()) if len(piece) > 1])
        if len(parts) == 1:  # normalisation made the name
            if self.vocabulary.unknown is not None:
                return np.where(self.is_text[ids], ids, np.int32(self.vocabulary.unknown))
            if len(text) == 1:
                return ids[self.is_text[ids]]
            parts = list(text)  # one by one, they form no name
        return np.concatenate(self._encode_as_text(parts))

    def _decode_run(self, ids: list[int], continues: bool) -> str:
        if not continues and not self._adds_space:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        # Decode with an "a" before: it shows whether a word begins here, and what the decoder does to the start of a
        # text happens to the "a".
        before = self._encode([" a" if self._adds_space else "a"])[0].tolist()
        text, start = (self._tokenizer.decode(each, skip_special_tokens=False) for each in (before + ids, before))
        text = text[len(start) :]
        return text if continues else text.removeprefix(" ")


def open_released(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> ReleasedTokenizer:
    """Open the tokenizer.json of a release, with the roles that its files give.

    Raises UserError if the files are damaged or contradict each other.
    """
    file = files.folder / TOKENIZER_FILE
    with name_in_errors(file):
        spec = add_to_spec(files, build(files.spec).get_vocab(with_added_tokens=True))
        made, _ = build_for_text(spec, ())
        for token, (name, _) in list_added(spec).items():
            if made.token_to_id(name) != token:
                raise UserError(f"the added token {name!r} should have id {token}, but has {made.token_to_id(name)}")
        front, last = find_ends(made)
        refuse_contradictions(files, begins=front is not None, ends=last is not None)
        roles = dataclasses.replace(_find_roles(files, list_pieces(made)), front=front)
        content = read_file(file) if spec is files.spec else json.dumps(spec, ensure_ascii=False).encode()
        return ReleasedTokenizer(content, roles, sentinels, specials)


def _find_roles(files: ReleaseFiles, pieces: Sequence[str | None]) -> Roles:
    """Find the roles by the names in the tokenizer's own files, then by the ids in the model's files."""
    ids = {piece: token for token, piece in enumerate(pieces) if piece is not None}
    roles: dict[str, int] = {}
    for role in NAMED:
        unknown = [files.spec["model"].get("unk_token")] if role == "unk" else []
        for name in (*files.find_names(role), *unknown):
            if isinstance(name, str) and name in ids:
                roles.setdefault(role, ids[name])
    for role, field in NUMBERED.items():
        value = files.generation.get(field)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and 0 <= value < len(pieces):
            roles.setdefault(role, value)
    if Roles(**roles).closing is None:
        raise UserError("no file beside it says which token ends a text; name it as eos_token in tokenizer_config.json")
    return Roles(**roles)


def closes_texts(folder: Path) -> bool:
    """Return whether the tokenizer.json of a release puts EOS after a text."""
    files = ReleaseFiles(folder)
    if not files.spec:
        return False
    made, _ = build_for_text(files.spec, ())
    last = find_ends(made)[1]
    return last is not None and [made.id_to_token(last)] == files.find_names("eos")[:1]
