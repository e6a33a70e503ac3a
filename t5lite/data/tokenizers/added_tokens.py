"""Tokens that the files of a release add to its vocabulary file. A contradiction between these files is a UserError.

    added_tokens.json         {"<tool>": 32100}
    tokenizer_config.json     {"added_tokens_decoder": {"32100": {"content": "<tool>", "special": true}},
                               "additional_special_tokens": ["<tool>"]}
    special_tokens_map.json   {"additional_special_tokens": ["<tool>"]}
    tokenizer.json            {"added_tokens": [{"id": 32100, "content": "<tool>", "special": true}]}

The tokens get the ids that the files give. A name without an id gets the next free id, as in transformers.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.data.tokenizers.release_files import WAY_OUT, ReleaseFiles
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape

NAMED_LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# {type of a part of tokenizer.json: {field of tokenizer_config.json: field of the part}}
SAME_FIELDS = {
    "BertNormalizer": {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
                       "tokenize_chinese_chars": "handle_chinese_chars"},
    "ByteLevel": {"add_prefix_space": "add_prefix_space"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that a release adds.

    content: its text. token: its id; None: it gets the next free id. special: whether it stands for something other
    than text. flags: the fields in FLAGS that the file gives.
    """

    content: str
    token: int | None
    special: bool
    flags: Mapping[str, bool] = dataclasses.field(default_factory=dict)


def read_added(files: ReleaseFiles) -> list[AddedToken]:
    """Return the tokens that the files add, those with ids first.

    Raises UserError if two files give one token two ids, or if two tokens have one id.
    """
    merged: dict[str, AddedToken] = {}
    by_id: dict[int, str] = {}
    for file, each in _list_tokens(files):
        before = merged.get(each.content, each)
        if each.token not in (None, before.token):
            raise UserError(
                f"{file}: {each.content!r} has id {each.token}, elsewhere it has {before.token}; correct it"
            )
        if each.content not in merged or (each.special and not before.special):
            merged[each.content] = dataclasses.replace(each, token=before.token)
        if each.token is not None and by_id.setdefault(each.token, each.content) != each.content:
            raise UserError(f"{files.folder}: {by_id[each.token]!r} and {each.content!r} both have id {each.token}")
    return sorted(merged.values(), key=lambda each: (each.token is None, each.token or 0))


def _list_tokens(files: ReleaseFiles) -> Iterator[tuple[Path, AddedToken]]:
    """Yield each token of each file with the file: those with ids, then those that the files only name."""
    for each in files.spec.get("added_tokens") or ():
        yield files.tokenizer_file, _with_id(each, each["id"])
    for token, each in (files.config.get("added_tokens_decoder") or {}).items():
        if not (token.isdecimal() and has_shape(each, {"content": str})):
            raise UserError(f"{files.config_file}: added_tokens_decoder should hold ids with their content, "
                            f"has {token!r}")  # fmt: skip
        yield files.config_file, _with_id(each, int(token))
    for content, token in files.ids.items():
        yield files.ids_file, AddedToken(content, token, False)
    lists = ((files.config_file, files.config), (files.names_file, files.names))
    for (file, names), field in itertools.product(lists, NAMED_LISTS):
        listed = names.get(field) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed  # {purpose: token}
        if not isinstance(listed, list):
            raise UserError(f"{file}: {field} should be a list of names, is {str(listed)[:60]}; {WAY_OUT}")
        for each in listed:
            content = each.get("content") if isinstance(each, dict) else each
            if not isinstance(content, str) or not content:
                raise UserError(f"{file}: {field} should be names, has {str(each)[:60]}")
            yield file, AddedToken(content, None, True)


def _with_id(fields: Mapping[str, Any], token: int) -> AddedToken:
    flags = {name: bool(fields[name]) for name in FLAGS if name in fields}
    return AddedToken(fields["content"], token, bool(fields.get("special")), flags)


def add_to_spec(files: ReleaseFiles, ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the contents of tokenizer.json with the tokens that the files beside it add.

    Args:
        ids: {piece: id} of the tokenizer without these tokens.

    Raises:
        UserError: if a file gives a token an id that tokenizer.json contradicts.
    """
    listed = {each["content"]: each for each in files.spec.get("added_tokens") or ()}
    own, pieces = dict(listed), {token: piece for piece, token in ids.items()}
    for each in read_added(files):
        token = ids.get(each.content, each.token)
        if token is None:
            token = max(pieces, default=-1) + 1
        if each.token not in (None, token) or pieces.get(token, each.content) != each.content:
            other = repr(pieces[each.token]) if each.token in pieces else "none"
            raise UserError(f"{files.folder}: the added token {each.content!r} has id {each.token}, which in "
                            f"tokenizer.json is that of {other}; correct one of the files")  # fmt: skip
        pieces[token] = each.content
        if each.content not in own:
            usual = dict.fromkeys(FLAGS, False) | {"normalized": not each.special}
            fields = {"id": token, "content": each.content, "special": each.special}
            listed[each.content] = {**fields, **usual, **each.flags}
        elif each.special:
            listed[each.content] = {**own[each.content], "special": True}
    return files.spec if listed == own else {**files.spec, "added_tokens": [*listed.values()]}


def place_above(added: Sequence[AddedToken], pieces: Sequence[str], sentinels: int) -> tuple[int, list[str]]:
    """Decide which ids the added tokens get above a SentencePiece model, which holds no added tokens itself.

    Args:
        pieces: by id.
        sentinels: how many to put above the pieces, unless `added` has an id for <extra_id_0>.

    Returns:
        The number of sentinels above the pieces, and the names above the sentinels in the order of their ids.

    Raises:
        UserError: if an id belongs to another token, or if the ids leave a gap.
    """
    first = next((each.token for each in added if each.content == "<extra_id_0>" and each.token is not None), None)
    if first is not None and first >= len(pieces):
        sentinels = first + 1 - len(pieces)
    size, above = len(pieces) + sentinels, []
    ids = {
        piece.removeprefix("▁") if piece.startswith("▁<extra") else piece: token for token, piece in enumerate(pieces)
    }
    ids |= {f"<extra_id_{size - 1 - token}>": token for token in range(len(pieces), size)}
    for each in added:
        token = ids.get(each.content)
        if token is None and each.token in (None, size + len(above)):
            above.append(each.content)
        elif token is None or each.token not in (None, token):
            raise UserError(f"the added token {each.content!r} has id {each.token}, where {size + len(above)} would be "
                            "the next one above the pieces and sentinels; correct the tokenizer's files")  # fmt: skip
    return sentinels, above


def refuse_contradictions(files: ReleaseFiles, begins: bool, ends: bool) -> None:
    """Raise UserError if tokenizer_config.json contradicts tokenizer.json on how a text is changed or framed.

    begins, ends: whether tokenizer.json puts a token in front of a text, and after it.
    """
    for name in ("normalizer", "pre_tokenizer"):
        part = files.spec.get(name) or {}
        for field, own in SAME_FIELDS.get(part.get("type"), {}).items():
            if files.config.get(field) not in (None, part.get(own)):
                raise UserError(
                    f"{files.config_file}: {field}={files.config[field]!r} contradicts {own}={part.get(own)!r} of "
                    f"tokenizer.json's {name}; correct one of the files"
                )
    for field, is_there in (("add_bos_token", begins), ("add_eos_token", ends)):
        value = files.config.get(field)
        if isinstance(value, bool) and value != is_there:
            adds = "adds such a token" if is_there else "adds no such token"
            raise UserError(
                f"{files.config_file}: {field}={value}, but the post_processor of tokenizer.json {adds}; correct one "
                "of them"
            )
