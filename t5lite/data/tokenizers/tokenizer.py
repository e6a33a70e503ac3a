"""Open a tokenizer of any kind: a SentencePiece .model file, a run's workdir, or the files of a release."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from t5lite.data.tokenizers.added_tokens import place_above, read_added
from t5lite.data.tokenizers.generation_config import read_rules, rules_from_json
from t5lite.data.tokenizers.release_files import CONFIG_FILE, TOKENIZER_FILE, ReleaseFiles, name_in_errors, read_file
from t5lite.data.tokenizers.released import ReleasedTokenizer, Roles, open_released
from t5lite.data.tokenizers.sentence_pieces import MODEL_FILE, OtherIds, Tokenizer
from t5lite.data.tokenizers.text_tokenizer import VOCABULARY_FILE, TextTokenizer
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape, read_json
from t5lite.system.vocabulary import PAD

COPY_ANEW = "copy the folder anew from where it came, or delete it if the cache has it"
ROLES = {field.name: (int, None) for field in dataclasses.fields(Roles)}
# Shapes of vocabulary.json. SentencePiece's files of older versions have no identity.
SHAPE = {"sentinels": int, "specials": [str], "below": (int, None)}
OF_SENTENCE_PIECES = {**SHAPE, "start": (int, None), "sha256": (str, None)}
OF_RELEASED = {**SHAPE, "roles": ROLES, "begins_with_start": bool, "sha256": str}


def load_tokenizer(path: str, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer at `path`.

    path: a SentencePiece .model file, a run's workdir, or `hf:DIR` with the files of a release. For `hf:DIR` the rules
    of generation are those in its files now, whoever wrote them. sentinels, specials: added to the tokenizer. A
    workdir's tokenizer ignores them, because it has its own. A release keeps the sentinels that it has.
    """
    place = Path(path.removeprefix("hf:"))
    if not os.path.exists(place):  # Path.exists raises if a name is too long
        raise UserError(f"tokenizer.path: {place} does not exist")
    if not place.is_dir():
        return _open_model(place, sentinels, specials)
    folder = next((f for f in (place, place / "tokenizer") if (f / VOCABULARY_FILE).is_file()), None)
    files = ReleaseFiles(place)
    tokenizer = _open_release(files, sentinels, specials) if folder is None else _reopen(folder)
    if folder is None or path.startswith("hf:"):
        tokenizer.rules = read_rules(files, tokenizer.vocabulary)
    return tokenizer


def _open_model(model: Path, sentinels: int, specials: Sequence[str], start: int = PAD, below: int = 0) -> Tokenizer:
    content = read_file(model)
    with name_in_errors(model):
        return Tokenizer(content, sentinels, specials, start, below)


def _open_release(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> TextTokenizer:
    """Open the tokenizer of T5 and its family from spiece.model, others from tokenizer.json."""
    has_json = files.has(TOKENIZER_FILE)
    if files.has("spiece.model"):
        try:
            return _open_spiece(files, sentinels, specials)
        except OtherIds:
            if not has_json:
                raise
    if not has_json:
        raise UserError(
            f"tokenizer.path: {files.folder} holds neither tokenizer/{VOCABULARY_FILE} nor spiece.model nor "
            f"{TOKENIZER_FILE}"
        )
    return open_released(files, sentinels, specials)


def _open_spiece(files: ReleaseFiles, sentinels: int, specials: Sequence[str]) -> Tokenizer:
    """Open T5's tokenizer with the tokens that the files beside it add. Raises OtherIds if it cannot hold them all."""
    file = files.folder / "spiece.model"
    bare, added = _open_model(file, 0, ()), read_added(files)
    of_config = files.read(CONFIG_FILE).get("extra_ids")  # how many sentinels T5's own code puts above the pieces
    with name_in_errors(file):
        sentinels, above = place_above(
            added, bare.pieces_and_scores()[0], sentinels if of_config is None else of_config
        )
    texts = [each["content"] for each in added if each["content"] in above and not each["special"]]
    if texts:
        raise OtherIds(
            f"{file}: the files beside it add {texts[0]!r}, which is text: only a tokenizer.json can hold it"
        )
    start = files.generation.get("decoder_start_token_id", PAD)
    if not has_shape(start, int):
        raise UserError(f"{files.folder}: decoder_start_token_id should be an id, is {start!r:.60}")
    return _open_model(file, sentinels, (*above, *(name for name in specials if name not in above)), start)


def _reopen(folder: Path) -> TextTokenizer:
    """Open the tokenizer that `save` wrote."""
    file, is_released = folder / VOCABULARY_FILE, (folder / TOKENIZER_FILE).is_file()
    facts = read_json(file, COPY_ANEW, OF_RELEASED if is_released else OF_SENTENCE_PIECES)
    sentinels, specials, below = facts["sentinels"], facts["specials"], facts.get("below") or 0
    if not 0 <= below <= len(specials):
        raise UserError(f"{file} is damaged (below={below} is not a number of its specials); {COPY_ANEW}")
    if is_released:
        pieces = folder / TOKENIZER_FILE
        content = read_file(pieces)
        with name_in_errors(pieces):
            roles = Roles(**{name: facts["roles"].get(name) for name in ROLES})
            tokenizer = ReleasedTokenizer(content, roles, sentinels, specials, below)
        tokenizer.begins_with_start = facts["begins_with_start"]
    else:
        pieces = folder / MODEL_FILE
        tokenizer = _open_model(pieces, sentinels, specials, facts.get("start") or PAD, below)
    if facts.get("sha256") not in (None, tokenizer.sha256):
        raise UserError(f"{pieces} or {file.name} beside it is damaged (they are not what they were); {COPY_ANEW}")
    tokenizer.rules = rules_from_json(facts.get("generation"), file, tokenizer.vocabulary.rows)
    return tokenizer
