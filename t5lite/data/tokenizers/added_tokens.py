"""Tokens that other files of a release add to its vocabulary file. If these files contradict each other: a UserError.

    added_tokens.json         {"<tool>": 32100}
    tokenizer_config.json     {"added_tokens_decoder": {"32100": {"content": "<tool>", "special": true}},
                               "additional_special_tokens": ["<tool>"]}
    special_tokens_map.json   {"additional_special_tokens": ["<tool>"]}
    tokenizer.json            {"added_tokens": [{"id": 32100, "content": "<tool>", "special": true}]}

Tokens keep the ids that the files give. A name without an id gets the next free id, as in transformers.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite.data.tokenizers.release_files import (
    CONFIG_FILE,
    IDS_FILE,
    NAMES_FILE,
    TOKENIZER_FILE,
    WAY_OUT,
    ReleaseFiles,
)
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


AddedToken = dict[str, Any]  # {"content": text, "id": id or None, "special": whether it is not text}, and FLAGS


def read_added(files: ReleaseFiles) -> list[AddedToken]:
    """Return the tokens that the files add. Tokens with ids come first.

    Raises UserError if two files give one token two ids, or if two tokens have one id.
    """
    merged: dict[str, AddedToken] = {}
    by_id: dict[int, str] = {}
    for file, each in _list_tokens(files):
        content, token, known = each["content"], each.get("id"), merged.get(each["content"])
        if known and token not in (None, known["id"]):
            raise UserError(f"{file}: {content!r} has id {token}, but {known['id']} in another file; correct one")
        if not known or (each.get("special") and not known["special"]):
            merged[content] = {**each, "id": known["id"] if known else token, "special": bool(each.get("special"))}
        if token is not None and by_id.setdefault(token, content) != content:
            raise UserError(f"{files.folder}: {by_id[token]!r} and {content!r} both have id {token}; correct one")
    return sorted(merged.values(), key=lambda each: (each["id"] is None, each["id"] or 0))


def _list_tokens(files: ReleaseFiles) -> Iterator[tuple[Path, AddedToken]]:
    """Yield (file, token) for each token of each file: first the tokens with ids, then tokens that are only named."""
    for each in files.spec.get("added_tokens") or ():
        yield files.folder / TOKENIZER_FILE, each
    file = files.folder / CONFIG_FILE
    for token, each in (files.read(CONFIG_FILE).get("added_tokens_decoder") or {}).items():
        if not (token.isdecimal() and has_shape(each, {"content": str})):
            raise UserError(f"{file}: added_tokens_decoder should map ids to contents, but has {token!r}; {WAY_OUT}")
        yield file, {**each, "id": int(token)}
    for content, token in files.read(IDS_FILE).items():
        yield files.folder / IDS_FILE, {"content": content, "id": token}
    for name, field in itertools.product((CONFIG_FILE, NAMES_FILE), NAMED_LISTS):
        file, listed = files.folder / name, files.read(name).get(field) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed  # {purpose: token}
        if not isinstance(listed, list):
            raise UserError(f"{file}: {field} should be a list of names, but is {str(listed)[:60]}; {WAY_OUT}")
        for each in listed:
            content = each.get("content") if isinstance(each, dict) else each
            if not isinstance(content, str) or not content:
                raise UserError(f"{file}: {field} should be names, but has {str(each)[:60]}; {WAY_OUT}")
            yield file, {"content": content, "special": True}


def assign_ids(added: Sequence[AddedToken], ids: Mapping[str, int], place: str) -> dict[str, int]:
    """Return {text: id} of the added tokens.

    Args:
        ids: {piece: id} of the tokenizer without the added tokens.
        place: the file with `ids`, for errors.

    Raises:
        UserError: if a token has an id other than in `ids`, or an id that belongs to another piece.
    """
    pieces, assigned = {token: piece for piece, token in ids.items()}, {}
    for each in added:
        content, stated_id = each["content"], each["id"]
        token = ids.get(content, stated_id)
        if token is None:
            token = max(pieces, default=-1) + 1
        if stated_id not in (None, token) or pieces.get(token, content) != content:
            other = repr(pieces[stated_id]) if stated_id in pieces else "no token"
            raise UserError(f"the added token {content!r} has id {stated_id}, which {place} gives to {other}; correct "
                            "one of the files")  # fmt: skip
        pieces[token], assigned[content] = content, token
    return assigned


def add_to_spec(files: ReleaseFiles, ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the contents of tokenizer.json with the tokens that the other files add.

    ids: {piece: id} of the tokenizer without these tokens. Raises UserError for contradictions.
    """
    in_file = {each["content"]: each for each in files.spec.get("added_tokens") or ()}
    listed, added = dict(in_file), read_added(files)
    assigned = assign_ids(added, ids, TOKENIZER_FILE)
    for each in added:
        content, special = each["content"], each["special"]
        if content not in in_file:
            flags = {name: bool(each.get(name, name == "normalized" and not special)) for name in FLAGS}
            listed[content] = {"id": assigned[content], "content": content, "special": special, **flags}
        elif special:
            listed[content] = {**in_file[content], "special": True}
    return files.spec if listed == in_file else {**files.spec, "added_tokens": [*listed.values()]}


def assign_ids_above(added: Sequence[AddedToken], pieces: Sequence[str], sentinels: int) -> tuple[int, list[str]]:
    """Decide the ids of the added tokens above a SentencePiece model, which itself has no added tokens.

    Args:
        pieces: the pieces in the order of their ids.
        sentinels: the number of sentinels above the pieces, unless `added` has an id for <extra_id_0>.

    Returns:
        The number of sentinels above the pieces, and the names above the sentinels in the order of their ids.

    Raises:
        UserError: if an id belongs to another token, or if the ids leave a gap.
    """
    first = next((each["id"] for each in added if each["content"] == "<extra_id_0>"), None)
    if first is not None and first >= len(pieces):
        sentinels = first + 1 - len(pieces)
    size = len(pieces) + sentinels
    ids = {piece.removeprefix("▁") if piece.startswith("▁<extra") else piece: i for i, piece in enumerate(pieces)}
    ids |= {f"<extra_id_{size - 1 - token}>": token for token in range(len(pieces), size)}
    names_above = {name: token for name, token in assign_ids(added, ids, "spiece.model").items() if name not in ids}
    for expected, (name, token) in enumerate(names_above.items(), start=size):
        if token != expected:
            raise UserError(f"the added token {name!r} has id {token}, but {expected} is the next free id above "
                            "the pieces and sentinels; correct the tokenizer's files")  # fmt: skip
    return sentinels, [*names_above]


def refuse_contradictions(files: ReleaseFiles, begins: bool, ends: bool) -> None:
    """Raise UserError if tokenizer_config.json and tokenizer.json normalise or frame a text differently.

    begins, ends: whether tokenizer.json puts a token in front of a text, and a token after it.
    """
    file, config = files.folder / CONFIG_FILE, files.read(CONFIG_FILE)
    for name in ("normalizer", "pre_tokenizer"):
        part = files.spec.get(name) or {}
        for field, same_field in SAME_FIELDS.get(part.get("type"), {}).items():
            if config.get(field) not in (None, part.get(same_field)):
                raise UserError(
                    f"{file}: {field}={config[field]!r} contradicts {same_field}={part.get(same_field)!r} of "
                    f"tokenizer.json's {name}; correct one of the files"
                )
    for field, has_token in (("add_bos_token", begins), ("add_eos_token", ends)):
        if isinstance(config.get(field), bool) and config[field] != has_token:
            adds = "adds such a token" if has_token else "adds no such token"
            raise UserError(
                f"{file}: {field}={config[field]}, but the post_processor of tokenizer.json {adds}; correct one of them"
            )
