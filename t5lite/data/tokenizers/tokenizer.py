"""Open a tokenizer of any kind: a SentencePiece .model file, a run's workdir, or the files of a release."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from t5lite.data.tokenizers.added_tokens import assign_ids_above, read_added
from t5lite.data.tokenizers.generation_config import read_rules, rules_from_json
from t5lite.data.tokenizers.release_files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    ReleaseFiles,
    name_in_errors,
    read_chat_template,
    read_file,
    read_template_file,
)
from t5lite.data.tokenizers.released import ReleasedTokenizer, Roles, open_released
from t5lite.data.tokenizers.sentence_pieces import MODEL_FILE, NotLikeT5, Tokenizer
from t5lite.data.tokenizers.text_tokenizer import VOCABULARY_FILE, TextTokenizer
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape, read_json
from t5lite.system.vocabulary import PAD

COPY_ANEW = "copy the folder anew, or delete it if it is in the cache"
ROLES = {field.name: (int, None) for field in dataclasses.fields(Roles)}
# Shapes of vocabulary.json. Files that older versions wrote for SentencePiece have no identity ("sha256").
SHAPE = {"sentinels": int, "specials": [str], "below": (int, None)}
SENTENCE_PIECES_SHAPE = {**SHAPE, "start": (int, None), "sha256": (str, None)}
RELEASED_SHAPE = {**SHAPE, "roles": ROLES, "begins_with_start": bool, "sha256": str}


def load_tokenizer(path: str, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer at `path`.

    path: a SentencePiece .model file, a run's workdir, or `hf:DIR` with the files of a release. For `hf:DIR` the rules
    of generation are always read from the files in DIR. sentinels, specials: added to the tokenizer. For a workdir both
    are ignored, because the saved tokenizer already has them. A release keeps the sentinels that it has.
    """
    place = Path(path.removeprefix("hf:"))
    if not os.path.exists(place):  # Path.exists raises if a name is too long
        raise UserError(f"tokenizer.path: {place} does not exist; correct the path")
    if not place.is_dir():
        return _open_model(place, sentinels, specials)
    folder = next((f for f in (place, place / "tokenizer") if (f / VOCABULARY_FILE).is_file()), None)
    files = ReleaseFiles(place)
    tokenizer = _open_release(files, sentinels, specials) if folder is None else _reopen(folder)
    if folder is None or path.startswith("hf:"):
        tokenizer.rules = read_rules(files, tokenizer.vocabulary)
    tokenizer.chat_template = read_chat_template(files) if folder is None else _read_saved_template(folder)
    return tokenizer


def find_chat_template(path: str) -> str | None:
    """Return the chat template of the tokenizer at `path`, as `load_tokenizer` reads it; None: there is none."""
    place = Path(path.removeprefix("hf:"))
    if not place.is_dir():
        return None
    folder = next((f for f in (place, place / "tokenizer") if (f / VOCABULARY_FILE).is_file()), None)
    return read_chat_template(ReleaseFiles(place)) if folder is None else _read_saved_template(folder)


def _read_saved_template(folder: Path) -> str | None:
    file = folder / CHAT_TEMPLATE_FILE
    return read_template_file(file) if file.is_file() else None


def _open_model(
    model: Path, sentinels: int, specials: Sequence[str], start: int = PAD, specials_below: int = 0
) -> Tokenizer:
    content = read_file(model)
    with name_in_errors(model):
        return Tokenizer(content, sentinels, specials, start, specials_below)


def _open_release(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer of T5 or its family from spiece.model, any other from tokenizer.json."""
    has_json = files.has(TOKENIZER_FILE)
    if files.has("spiece.model"):
        try:
            return _open_spiece(files, sentinels, specials)
        except NotLikeT5:
            if not has_json:
                raise
    if not has_json:
        raise UserError(
            f"tokenizer.path: {files.folder} holds neither tokenizer/{VOCABULARY_FILE} nor spiece.model nor "
            f"{TOKENIZER_FILE}; give a workdir or the folder of a release"
        )
    return open_released(files, sentinels, specials)


def _open_spiece(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> Tokenizer:
    """Open T5's tokenizer with the tokens that the files beside it add. Raises NotLikeT5 if it cannot hold them all."""
    file = files.folder / "spiece.model"
    bare, added = _open_model(file, 0, ()), read_added(files)
    config_sentinels = files.read(CONFIG_FILE).get("extra_ids")  # the number of sentinels that T5's code adds
    with name_in_errors(file):
        sentinels, names_above = assign_ids_above(
            added, bare.pieces_and_scores()[0], sentinels if config_sentinels is None else config_sentinels
        )
    texts = [each["content"] for each in added if each["content"] in names_above and not each["special"]]
    if texts:
        raise NotLikeT5(
            f"{file}: other files add {texts[0]!r}, which is text and fits only in a tokenizer.json; add that file"
        )
    start = files.generation.get("decoder_start_token_id", PAD)
    if not has_shape(start, int):
        raise UserError(f"{files.folder}: decoder_start_token_id should be an id, but is {start!r:.60}; correct it")
    return _open_model(file, sentinels, (*names_above, *(name for name in specials if name not in names_above)), start)


def _reopen(folder: Path) -> TextTokenizer:
    """Open the tokenizer that `save` wrote."""
    file, is_released = folder / VOCABULARY_FILE, (folder / TOKENIZER_FILE).is_file()
    facts = read_json(file, COPY_ANEW, RELEASED_SHAPE if is_released else SENTENCE_PIECES_SHAPE)
    sentinels, specials, specials_below = facts["sentinels"], facts["specials"], facts.get("below") or 0
    if not 0 <= specials_below <= len(specials):
        raise UserError(f"{file} is damaged (below={specials_below} of {len(specials)} specials); {COPY_ANEW}")
    if is_released:
        pieces = folder / TOKENIZER_FILE
        content = read_file(pieces)
        with name_in_errors(pieces):
            roles = Roles(**{name: facts["roles"].get(name) for name in ROLES})
            tokenizer = ReleasedTokenizer(content, roles, sentinels, specials, specials_below)
        tokenizer.begins_with_start = facts["begins_with_start"]
    else:
        pieces = folder / MODEL_FILE
        tokenizer = _open_model(pieces, sentinels, specials, facts.get("start") or PAD, specials_below)
    if facts.get("sha256") not in (None, tokenizer.sha256):
        raise UserError(f"{pieces} or {file.name} beside it is damaged (the checksum differs); {COPY_ANEW}")
    tokenizer.rules = rules_from_json(facts.get("generation"), file, tokenizer.vocabulary.rows)
    return tokenizer
