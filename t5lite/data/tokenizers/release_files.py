"""The files of a released tokenizer, as its authors published them. Each is read when it is first needed, and once."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5lite.data.tokenizers.tokenizer_json import parse
from t5lite.system.errors import UserError
from t5lite.system.files import read_bytes, read_json

WAY_OUT = "fetch it anew"
TOKENIZER_FILE = "tokenizer.json"
ROLE_IDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")


class ReleaseFiles:
    """The files in `folder`. A property is empty if its file does not exist. Raises UserError for a damaged file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer_file = folder / TOKENIZER_FILE
        self.config_file = folder / "tokenizer_config.json"
        self.names_file = folder / "special_tokens_map.json"
        self.ids_file = folder / "added_tokens.json"

    @functools.cached_property
    def content(self) -> bytes:
        """The bytes of tokenizer.json."""
        return read_file(self.tokenizer_file) if self.tokenizer_file.is_file() else b""

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The contents of tokenizer.json."""
        with naming(self.tokenizer_file):
            return parse(self.content) if self.tokenizer_file.is_file() else {}

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The contents of tokenizer_config.json."""
        shape = {"added_tokens_decoder": (dict, None), "extra_ids": (int, None)}
        return read_json(self.config_file, WAY_OUT, shape) or {}

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """The contents of special_tokens_map.json."""
        return read_json(self.names_file, WAY_OUT) or {}

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The contents of added_tokens.json: {text: id}."""
        return read_json(self.ids_file, WAY_OUT, {str: int}) or {}

    @property
    def generation_file(self) -> Path:
        """The file that decides on generation: generation_config.json, or config.json if that does not exist."""
        newer = self.folder / "generation_config.json"
        return newer if newer.is_file() else self.folder / "config.json"

    @functools.cached_property
    def generation(self) -> dict[str, Any]:
        """The fields of the file that decides on generation. Ids that it lacks come from config.json."""
        older = read_json(self.folder / "config.json", f"{WAY_OUT}, or remove it") or {}
        newer = read_json(self.folder / "generation_config.json", f"{WAY_OUT}, or remove it")
        if newer is None:
            return older
        ids = {name: older[name] for name in ROLE_IDS if name in older}
        return ids | {name: value for name, value in newer.items() if value is not None}

    def tokens_named(self, role: str) -> list[str]:
        """Return the names that the files give a role such as "eos", the one that counts first."""
        named = [names.get(f"{role}_token") for names in (self.config, self.names)]
        named = [name.get("content") if isinstance(name, dict) else name for name in named]
        return [name for name in named if isinstance(name, str)]


def read_file(file: Path) -> bytes:
    """Return the bytes of a file with a tokenizer's pieces. Raises UserError for a file that cannot be read."""
    try:
        return read_bytes(file)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {file}: {error.strerror}") from error


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Begin every UserError of the block with the file's name."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{file}: {error}") from error
