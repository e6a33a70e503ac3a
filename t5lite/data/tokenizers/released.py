"""Tokenizers of released models that come as tokenizer.json: BART's, BERT's, GPT-2's, Llama's and others.

Their ids do not change. If a config asks for sentinels or specials that the tokenizer lacks, they get ids above the
last id. If the tokenizer's last ids are sentinels, as in T5's, no other sentinels are added. In a workdir:

    tokenizer/tokenizer.json    the released file
    tokenizer/vocabulary.json   with "roles": {"eos": 2, …} and "begins_with_start": true

Byte-level tokenizers and Llama's lose nothing of a text, unless they normalise it, which few do. If a text begins with
a space, the space is kept. Llama's encodes two spaces then, like SentencePiece; the `tokenizers` library sometimes
encodes one.
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
    cut_names,
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

NAMED_ROLES = ("bos", "eos", "unk", "pad", "mask", "cls", "sep")  # roles for which a file may name the token
ROLE_FIELDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id", "start": "decoder_start_token_id"}


@dataclasses.dataclass(frozen=True)
class Roles:
    """The id for each role, among the ids of the released tokenizer; None: no id has the role."""

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None
    start: int | None = None
    front: int | None = None  # the id that the post-processor puts in front of a text

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a text: EOS, or [SEP] without EOS, as in BERT's."""
        return self.sep if self.eos is None else self.eos

    @property
    def decoder_start(self) -> int:
        """A decoder's first input.

        If no file gives the id: BOS, as in all language models with a BOS; else [CLS], padding or EOS.
        """
        candidates = (self.start, self.bos, self.cls, self.pad, self.end_of_text)
        return next(each for each in candidates if each is not None)


class ReleasedTokenizer(TextTokenizer):
    """A tokenizer.json with sentinels and specials above its ids.

    content: the bytes of the tokenizer.json. sentinels: how many to add; ignored if the last ids are sentinels already.
    specials_below: see TextTokenizer.
    """

    FILE = TOKENIZER_FILE

    def __init__(
        self,
        content: bytes,
        roles: Roles,
        sentinels: int = SENTINELS,
        specials: Sequence[str] = (),
        specials_below: int = 0,
    ):
        self.content, self.roles, self.base = content, roles, (content, roles)
        spec = parse(content)
        used = [token for token in dataclasses.asdict(roles).values() if token is not None]
        self._tokenizer, self._adds_space = build_for_text(spec, used)
        pieces = list_pieces(self._tokenizer)
        if not all(0 <= token < len(pieces) for token in used) or roles.end_of_text is None:
            raise UserError(f"the special tokens {used} are not all among its {len(pieces):,} ids, or EOS is missing")
        self._special_names = {token: name for token, (name, special) in list_added(spec).items() if special}
        self._special_names |= {token: pieces[token] or f"<{token}>" for token in used}
        facts = describe_pieces(spec, pieces, self._special_names)
        first_pieces = (facts[token] for token in self._encode([" a" if self._adds_space else "a"])[0])
        puts_space = sum(each.num_bytes for each in first_pieces if each) >= 2
        self._set_vocabulary(
            facts,
            self._tokenizer.token_to_id,
            self._find_specials(),
            (sentinels, specials, specials_below),
            puts_space,
            eos=roles.end_of_text,
            start=roles.decoder_start,
            bos=roles.bos if roles.front == roles.bos else None,
            unknown=None if roles.unk == roles.end_of_text else roles.unk,  # in GPT-2, EOS is also the unknown token
        )
        self.names |= self._special_names
        framing = {roles.bos, roles.eos}  # in BART these are [CLS] and [SEP], and their names stay text
        named = {roles.mask, roles.cls, roles.sep} - {None, *framing}
        self.ids_by_name |= {self._special_names[token]: token for token in named}
        self.hidden_ids = {roles.end_of_text, *framing, roles.pad} | ({roles.decoder_start} - {roles.cls})
        self.begins_with_start = roles.front == roles.decoder_start
        self.begins_after_specials = self._adds_space and self._adds_space_after(spec, roles.end_of_text)

    def _adds_space_after(self, spec: dict[str, Any], token: int) -> bool:
        """Return whether the released file puts a space in front of a text that follows a special token."""
        library = build(spec)
        library.encode_special_tokens = False
        after = library.encode(f"{self._special_names[token]}a", add_special_tokens=False).ids[1:]
        return after == self._encode([" a"])[0].tolist()

    def _find_specials(self) -> dict[str, int]:
        """Return {name: id} of the released special tokens. The objectives' names, such as [MASK], are added."""
        roles = self.roles
        ids = {name: token for token, name in self._special_names.items()}
        ids = {name: token for name, token in ids.items() if token not in {roles.bos, roles.eos, roles.unk, roles.pad}}
        by_role = {MASK: roles.mask, CLS: roles.cls, SEP: roles.sep}
        return ids | {name: token for name, token in by_role.items() if token is not None}

    def _identity(self) -> Any:
        return {**self._added_fields(), "roles": dataclasses.asdict(self.roles)}

    def _facts(self) -> dict[str, Any]:
        return {**self._identity(), "begins_with_start": self.begins_with_start}

    def _rebuild_with(self, sentinels: int, specials: Sequence[str], specials_below: int) -> "ReleasedTokenizer":
        return ReleasedTokenizer(self.content, self.roles, sentinels, specials, specials_below)

    def _encode_texts(self, texts: Sequence[str], continues: Sequence[bool]) -> list[np.ndarray]:
        spaced_texts = [
            f" {text}" if self._adds_space and text and not goes_on else text
            for text, goes_on in zip(texts, continues, strict=True)
        ]
        return self._encode_as_text(spaced_texts)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def locate(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        """See `TextTokenizer.locate`. The `tokenizers` library knows the places also if it normalises the text."""
        shift = int(self._adds_space and bool(text))
        encoding = self._tokenizer.encode(" " * shift + text, add_special_tokens=False)
        if not np.array_equal(encoding.ids, ids):
            return None
        return np.maximum(np.array(encoding.offsets, np.int64).reshape(-1, 2) - shift, 0)

    def _encode_as_text(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text. A unigram model would read the name </s> as EOS. Here the name stays text."""
        return [
            ids if self.is_text[ids].all() else self._encode_without_names(text, ids)
            for text, ids in zip(texts, self._encode(texts), strict=True)
        ]

    def _encode_without_names(self, text: str, ids: np.ndarray) -> np.ndarray:
        parts = cut_names(text, [piece for piece in set(self._special_names.values()) if len(piece) > 1])
        if len(parts) == 1:  # the name appeared only by normalisation
            if self.vocabulary.unknown is not None:
                return np.where(self.is_text[ids], ids, np.int32(self.vocabulary.unknown))
            if len(text) == 1:
                return ids[self.is_text[ids]]
            parts = list(text)  # single characters form no name
        return np.concatenate(self._encode_as_text(parts))

    def _decode_run(self, ids: list[int], continues: bool) -> str:
        if not continues and not self._adds_space:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        # Decode with an "a" in front. The "a" shows whether a word begins after it. If the decoder changes the start of
        # a text, it changes only the "a".
        before = self._encode([" a" if self._adds_space else "a"])[0].tolist()
        text, start = (self._tokenizer.decode(each, skip_special_tokens=False) for each in (before + ids, before))
        text = text[len(start) :]
        return text if continues else text.removeprefix(" ")


def open_released(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> ReleasedTokenizer:
    """Open the tokenizer.json of a release, with the roles that the release's files give.

    Raises UserError if the files are damaged or contradict each other.
    """
    file = files.folder / TOKENIZER_FILE
    with name_in_errors(file):
        spec = add_to_spec(files, build(files.spec).get_vocab(with_added_tokens=True))
        tokenizer, _ = build_for_text(spec, ())
        for token, (name, _) in list_added(spec).items():
            if (actual := tokenizer.token_to_id(name)) != token:
                raise UserError(f"the added token {name!r} should have id {token}, but has {actual}; correct the file")
        front, last = find_ends(tokenizer)
        refuse_contradictions(files, begins=front is not None, ends=last is not None)
        roles = dataclasses.replace(_find_roles(files, list_pieces(tokenizer)), front=front)
        content = read_file(file) if spec is files.spec else json.dumps(spec, ensure_ascii=False).encode()
        return ReleasedTokenizer(content, roles, sentinels, specials)


def _find_roles(files: ReleaseFiles, pieces: Sequence[str | None]) -> Roles:
    """Find the roles, first by names in the tokenizer's files, then by ids in the model's files."""
    ids = {piece: token for token, piece in enumerate(pieces) if piece is not None}
    roles: dict[str, int] = {}
    for role in NAMED_ROLES:
        unknown = [files.spec["model"].get("unk_token")] if role == "unk" else []
        for name in (*files.find_names(role), *unknown):
            if isinstance(name, str) and name in ids:
                roles.setdefault(role, ids[name])
    for role, field in ROLE_FIELDS.items():
        value = files.generation.get(field)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and 0 <= value < len(pieces):
            roles.setdefault(role, value)
    if Roles(**roles).end_of_text is None:
        raise UserError("no file says which token ends a text; name that token as eos_token in tokenizer_config.json")
    return Roles(**roles)


def closes_texts(folder: Path) -> bool:
    """Return whether the tokenizer.json of a release puts EOS after a text."""
    files = ReleaseFiles(folder)
    if not files.spec:
        return False
    tokenizer, _ = build_for_text(files.spec, ())
    last = find_ends(tokenizer)[1]
    return last is not None and [tokenizer.id_to_token(last)] == files.find_names("eos")[:1]
