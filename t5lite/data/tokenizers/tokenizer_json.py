"""Read tokenizer.json, the file of the `tokenizers` library, and return facts about its pieces.

In a text, the names of special tokens are read as plain text.

The file is data: no part of the file is ever executed. These parts are changed:

    added tokens                       a token with a role (</s>, <mask>) becomes special: </s> in a text is plain text
    padding, truncation, BPE dropout   off
    the space in front of a text       removed if the ids stay the same (`build_for_text`); the caller adds it
    WordPiece's decoder                without its clean-up, which removes spaces before punctuation
"""

import contextlib
import copy
import json
import os
from collections.abc import Collection, Iterator
from typing import Any

import tokenizers

from t5lite.data.tokenizers.token_table import Piece
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape

SPACE = "▁"
MAX_IDS = 2**22
SHAPE = {
    "model": dict,
    "added_tokens": ([{"id": int, "content": str, "special": (bool, None)}], None),
    "normalizer": (dict, None),
    "pre_tokenizer": (dict, None),
    "decoder": (dict, None),
}
BYTES_OF_SPACE = ("Ġ", "Ċ", "ĉ", "č")  # how byte-level pieces write a space, line feed, tab and carriage return


def parse(file: bytes) -> dict[str, Any]:
    """Parse a tokenizer.json. Raises UserError for any other file."""
    try:
        spec = json.loads(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a readable tokenizer.json: {error}") from error
    if not has_shape(spec, SHAPE) or "vocab" not in spec["model"]:
        raise UserError(
            "not a readable tokenizer.json: it lacks a model with a vocabulary, or has parts of a wrong shape"
        )
    return spec


def build(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer of `spec`.

    The tokenizer reads names of special tokens as text. Raises UserError if the library cannot build it, or cannot
    encode and decode a short text with it.
    """
    with _turn_panic_into_error():
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        tokenizer.encode_special_tokens = True
        for add in (False, True):  # some errors appear only when the tokenizer is used
            tokenizer.decode(tokenizer.encode(" a\nb", add_special_tokens=add).ids, skip_special_tokens=False)
    return tokenizer


@contextlib.contextmanager
def _turn_panic_into_error() -> Iterator[None]:
    """Turn any error of the library into a UserError.

    If a file breaks the library's assumptions, the library panics. A panic is not an Exception. The library also prints
    a trace to standard error, so standard error is silenced here.
    """
    stderr_copy, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"not a readable tokenizer.json: {error}") from error
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(devnull)


def list_pieces(tokenizer: tokenizers.Tokenizer) -> list[str | None]:
    """Return the piece of each id, or None for an id without a piece. Raises UserError for no ids or over 2**22 ids."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    rows = max(ids.values(), default=-1) + 1
    if not 0 < rows <= MAX_IDS:
        raise UserError(f"not a readable tokenizer.json: it has {rows:,} ids, but 1 to {MAX_IDS:,} are possible")
    pieces: list[str | None] = [None] * rows
    for piece, token in ids.items():
        pieces[token] = piece
    return pieces


def list_added(spec: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return {id: (content, whether the token is special)} of the added tokens."""
    return {each["id"]: (each["content"], bool(each.get("special"))) for each in spec.get("added_tokens") or ()}


def build_for_text(spec: dict[str, Any], roles: Collection[int]) -> tuple[tokenizers.Tokenizer, bool]:
    """Build the tokenizer of `spec` with the changes that the module's docstring lists.

    Many tokenizers put a space in front of a text, so that the first word is like any other word. Here the caller adds
    the space, but not to a text that continues another. If this would change the ids,
    the tokenizer itself keeps adding the space.

    Args:
        roles: ids that become special.

    Returns:
        The tokenizer, and whether the caller must put a space in front of a text.
    """
    spec = _copy(spec) | {"truncation": None, "padding": None}
    spec["model"] = spec["model"] | ({"dropout": None} if "dropout" in spec["model"] else {})
    for token in spec.get("added_tokens") or ():
        token["special"] = bool(token.get("special")) or token["id"] in roles
    for part in _list_parts(spec.get("decoder")):
        if part.get("type") == "WordPiece":
            part["cleanup"] = False
    tokenizer, bare_spec = build(spec), _remove_space(spec)
    if bare_spec is None:
        return tokenizer, False
    bare = build(bare_spec)
    same = tokenizer.encode("a", add_special_tokens=False).ids == bare.encode(" a", add_special_tokens=False).ids
    return (bare, True) if same else (tokenizer, False)


def find_ends(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, int | None]:
    """Return the id that the tokenizer puts in front of a text, and the id that it puts after a text; None: no id."""
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return full[0] if full[:1] != bare[:1] else None, full[-1] if full[-1:] != bare[-1:] else None


def _copy(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that shares the model with `spec`, because the model is nearly all of a file."""
    return {name: value if name == "model" else copy.deepcopy(value) for name, value in spec.items()}


def _list_parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a Sequence, or a list of the component itself."""
    for name in ("normalizers", "pretokenizers", "decoders"):
        if component and isinstance(component.get(name), list):
            return [part for part in component[name] if isinstance(part, dict)]
    return [] if component is None else [component]


def _remove_space(spec: dict[str, Any]) -> dict[str, Any] | None:
    """Return a copy that puts no space in front of a text.

    None if `spec` puts no space there, or strips white space there.
    """
    bare = _copy(spec)
    normalizers = _list_parts(bare.get("normalizer"))
    for part in normalizers:
        if part.get("type") == "Prepend" and part.get("prepend") in (SPACE, " "):
            part.clear()
            part |= {"type": "Sequence", "normalizers": []}
    for part in _list_parts(bare.get("pre_tokenizer"))[:1]:  # later parts act on parts of a text
        if part.get("type") == "ByteLevel" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            part |= {"prepend_scheme": "never"}
            part.pop("add_prefix_space", None)
    strips = any(part.get("type") == "Strip" and part.get("strip_left") for part in normalizers)
    return None if strips or bare == spec else bare


def describe_pieces(spec: dict[str, Any], pieces: list[str | None], special: Collection[int]) -> list[Piece | None]:
    """Return facts about each piece, or None for a special one.

    The text of an added token that is not special is its name, unchanged.
    """
    added = list_added(spec)
    types = [part.get("type") for name in ("pre_tokenizer", "decoder") for part in _list_parts(spec.get(name))]
    prefix = spec["model"].get("continuing_subword_prefix") or "##"

    def describe(token: int, piece: str) -> Piece:
        text, starts = piece.replace(SPACE, " "), piece.startswith((SPACE, " ", "\n"))
        size, has_space = len(text.encode()), text.startswith(" ")
        if token in added:
            size, starts, has_space = len(piece.encode()), piece[:1].isspace(), False
        elif "ByteLevel" in types:
            size, starts, has_space = len(piece), piece.startswith(BYTES_OF_SPACE), piece.startswith(BYTES_OF_SPACE[0])
        elif spec["model"].get("type") == "WordPiece":
            starts = has_space = not piece.startswith(prefix)
            text = piece.removeprefix(prefix)
            size = len(text.encode()) + starts
        elif "ByteFallback" in types and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            size = 1
        return Piece(size, has_space, starts, text.endswith((".", "?", "!")))

    return [None if piece is None or token in special else describe(token, piece) for token, piece in enumerate(pieces)]
