"""The files of a released tokenizer, as its authors published them. Each file is read once, when it is first needed."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.data.tokenizers.tokenizer_json import parse
from t5lite.system.errors import UserError
from t5lite.system.files import read_bytes, read_json

TOKENIZER_FILE, CONFIG_FILE, NAMES_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
IDS_FILE, GENERATION_FILE, MODEL_CONFIG_FILE = "added_tokens.json", "generation_config.json", "config.json"
SHAPES = {CONFIG_FILE: {"added_tokens_decoder": (dict, None), "extra_ids": (int, None)}, IDS_FILE: {str: int}}
CHAT_TEMPLATE_FILE = "chat_template.jinja"
WAY_OUT = "fetch it anew"
LONGEST_TEMPLATE = 1 << 20  # bytes
ROLE_IDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")


class ReleaseFiles:
    """The files in `folder`. A file that does not exist is empty. Raises UserError for a damaged file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._contents: dict[str, dict[str, Any]] = {}

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read(self, name: str) -> dict[str, Any]:
        """Return the contents of a JSON file."""
        if name not in self._contents:
            self._contents[name] = read_json(self.folder / name, WAY_OUT, SHAPES.get(name, dict)) or {}
        return self._contents[name]

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The contents of tokenizer.json."""
        file = self.folder / TOKENIZER_FILE
        with name_in_errors(file):
            return parse(read_file(file)) if file.is_file() else {}

    @functools.cached_property
    def generation(self) -> dict[str, Any]:
        """The fields of generation_config.json, or of config.json if there is no generation_config.json.

        Ids that generation_config.json lacks come from config.json.
        """
        model_fields = self.read(MODEL_CONFIG_FILE)
        if not self.has(GENERATION_FILE):
            return model_fields
        ids = {name: model_fields[name] for name in ROLE_IDS if name in model_fields}
        return ids | {name: value for name, value in self.read(GENERATION_FILE).items() if value is not None}

    def find_names(self, role: str) -> list[str]:
        """Return the names of the token with a role such as "eos". If they differ, the first name counts."""
        names = [self.read(file).get(f"{role}_token") for file in (CONFIG_FILE, NAMES_FILE)]
        names = [name.get("content") if isinstance(name, dict) else name for name in names]
        return [name for name in names if isinstance(name, str)]


def read_file(file: Path) -> bytes:
    """Return the bytes of a file with a tokenizer's pieces. Raises UserError for a file that cannot be read."""
    try:
        return read_bytes(file)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {file}: {error.strerror}; check its permissions") from error


def read_chat_template(files: ReleaseFiles) -> str | None:
    """Return the chat template of a release: its chat_template.jinja, else that of tokenizer_config.json, or None.

    If tokenizer_config.json has several templates, the one that is named "default" counts.
    """
    if files.has(CHAT_TEMPLATE_FILE):
        return read_template_file(files.folder / CHAT_TEMPLATE_FILE)
    template = files.read(CONFIG_FILE).get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default", template)
    if not isinstance(template, str | None):
        raise UserError(f"{files.folder / CONFIG_FILE}: chat_template should be a text, but is {str(template)[:60]}; "
                        "give it a text, or a list with a template that is named default")  # fmt: skip
    return template


def has_chat_template(folder: Path) -> bool:
    """Return whether a release has a chat template. A folder tokenizer/ in the release does not count."""
    return read_chat_template(ReleaseFiles(folder)) is not None


def read_template_file(file: Path) -> str:
    """Return the text of a file with a chat template. Raises UserError for a file that holds no such text."""
    try:
        content = read_bytes(file)
        if len(content) > LONGEST_TEMPLATE:
            raise UserError(f"{file} has {len(content):,} bytes, but a template has at most {LONGEST_TEMPLATE:,}")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the chat template {file}: {error.strerror}; check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}; convert it") from None


@contextlib.contextmanager
def name_in_errors(file: Path) -> Iterator[None]:
    """Put the file's name in front of every UserError of the block."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{file}: {error}") from error
