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
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.system.errors import UserError
from t5lite.system.files import has_shape, read_json

WAY_OUT = "fetch it anew"
NAMED_LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


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


def read_added(folder: Path, spec: Mapping[str, Any] | None = None) -> list[AddedToken]:
    """Return the tokens that the files in `folder` add, those with ids first. spec: the contents of tokenizer.json.

    Raises UserError if two files give one token two ids, or if two tokens have one id.
    """
    found: dict[str, AddedToken] = {}
    names = set()
    for file, each in _listed(folder, spec or {}):
        before = found.get(each.content, each)
        if before.token is not None and each.token not in (None, before.token):
            raise UserError(
                f"{file}: {each.content!r} has id {each.token}, elsewhere it has {before.token}; correct it"
            )
        names |= {each.content} if each.token is None else set()
        if each.content not in found or before.token is None or (each.special and not before.special):
            found[each.content] = dataclasses.replace(each, token=before.token if each.token is None else each.token)
    by_id: dict[int, str] = {}
    for each in found.values():
        if each.token is not None and by_id.setdefault(each.token, each.content) != each.content:
            raise UserError(f"{folder}: {by_id[each.token]!r} and {each.content!r} both have id {each.token}")
    tokens = [dataclasses.replace(each, special=each.special or each.content in names) for each in found.values()]
    return sorted(tokens, key=lambda each: (each.token is None, each.token or 0))


def _listed(folder: Path, spec: Mapping[str, Any]) -> Iterator[tuple[Path, AddedToken]]:
    own = spec.get("added_tokens") or []
    if not has_shape(own, [{"id": int, "content": str}]):
        raise UserError(f"{folder / 'tokenizer.json'}: added_tokens should be objects with id and content; {WAY_OUT}")
    for each in own:
        yield folder / "tokenizer.json", _made(each["content"], each["id"], each)
    config = folder / "tokenizer_config.json"
    said = read_json(config, WAY_OUT, {"added_tokens_decoder": (dict, None)}) or {}
    for token, each in (said.get("added_tokens_decoder") or {}).items():
        if not (token.isdecimal() and has_shape(each, {"content": str})):
            raise UserError(f"{config}: added_tokens_decoder should hold ids with their content, has {token!r}")
        yield config, _made(each["content"], int(token), each)
    file = folder / "added_tokens.json"
    for content, token in (read_json(file, WAY_OUT, {str: int}) or {}).items():
        yield file, AddedToken(content, token, False)
    for file, name in itertools.product((config, folder / "special_tokens_map.json"), NAMED_LISTS):
        listed = (read_json(file, WAY_OUT) or {}).get(name) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed  # {purpose: token}
        if not isinstance(listed, list):
            raise UserError(f"{file}: {name} should be a list of names, is {str(listed)[:60]}; {WAY_OUT}")
        for each in listed:
            content = each.get("content") if isinstance(each, dict) else each
            if not isinstance(content, str) or not content:
                raise UserError(f"{file}: {name} should be names, has {str(each)[:60]}")
            yield file, AddedToken(content, None, True)


def _made(content: str, token: int, said: Mapping[str, Any]) -> AddedToken:
    flags = {name: bool(said.get(name)) for name in FLAGS if name in said}
    return AddedToken(content, token, bool(said.get("special")), flags)


def with_added(folder: Path, file: bytes, spec: dict[str, Any], ids: Mapping[str, int]) -> tuple[bytes, dict[str, Any]]:
    """Add the tokens of the files beside a tokenizer.json to it. Return its new bytes and its new contents.

    Args:
        file: bytes of the tokenizer.json.
        spec: contents of the tokenizer.json.
        ids: {piece: id} of the tokenizer without these tokens.

    Raises:
        UserError: if a file gives a token an id that tokenizer.json contradicts.
    """
    own = {each["content"]: each for each in spec.get("added_tokens") or ()}
    pieces, new = {token: piece for piece, token in ids.items()}, []
    for each in read_added(folder, spec):
        token = ids.get(each.content, each.token)
        if token is None:
            token = max(pieces, default=-1) + 1
        if each.token not in (None, token) or pieces.get(token, each.content) != each.content:
            other = repr(pieces[each.token]) if each.token in pieces else "none"
            raise UserError(f"{folder}: the added token {each.content!r} has id {each.token}, which in tokenizer.json "
                            f"is that of {other}; correct one of the files")  # fmt: skip
        pieces[token] = each.content
        if each.content not in own:
            usual = dict.fromkeys(FLAGS, False) | {"normalized": not each.special}
            new.append({"id": token, "content": each.content, "special": each.special, **usual, **each.flags})
        elif each.special and not own[each.content].get("special"):
            own[each.content]["special"] = True
            new.append(None)
    if not new:
        return file, spec
    spec = {**spec, "added_tokens": [*own.values(), *filter(None, new)]}
    return json.dumps(spec, ensure_ascii=False).encode(), spec


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


def refuse_contradictions(folder: Path, spec: Mapping[str, Any]) -> None:
    """Raise UserError if tokenizer_config.json contradicts tokenizer.json on how a text is normalised."""
    said = read_json(folder / "tokenizer_config.json", WAY_OUT) or {}
    bert = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars"}  # fmt: skip
    kinds = {"BertNormalizer": bert, "ByteLevel": {"add_prefix_space": "add_prefix_space"}}
    for name, part in (("normalizer", spec.get("normalizer")), ("pre_tokenizer", spec.get("pre_tokenizer"))):
        for field, own in kinds.get((part or {}).get("type"), {}).items():
            if said.get(field) is not None and said[field] != part.get(own):
                raise UserError(
                    f"{folder / 'tokenizer_config.json'}: {field}={said[field]!r} contradicts {own}={part.get(own)!r} "
                    f"of tokenizer.json's {name}; correct one of the files"
                )


def refuse_other_ends(folder: Path, begins: bool, ends: bool) -> None:
    """Raise UserError if tokenizer_config.json contradicts tokenizer.json on the first or last token of a text.

    begins, ends: whether tokenizer.json puts a token in front of a text, and after it.
    """
    file = folder / "tokenizer_config.json"
    said = read_json(file, WAY_OUT) or {}
    for field, is_there in (("add_bos_token", begins), ("add_eos_token", ends)):
        if isinstance(said.get(field), bool) and said[field] != is_there:
            adds = "adds such a token" if is_there else "adds no such token"
            raise UserError(
                f"{file}: {field}={said[field]}, but the post_processor of tokenizer.json {adds}; correct one of them"
            )
