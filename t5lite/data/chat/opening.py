"""Open the chat data of a config: what encodes its conversations, and the token stores of a source."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from t5lite.data.build import build_once
from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.store import ChatLayout, build_chat
from t5lite.data.chat.templates import choose_template
from t5lite.data.columns import Columns
from t5lite.data.files import FileSource
from t5lite.data.sources import Source
from t5lite.data.store import FORMAT
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError


def open_chat(
    config: ConfigDict, tokenizer: TextTokenizer, prepends_start: bool = True
) -> tuple[ChatEncoder, ChatLayout]:
    """Return what turns the conversations of a config into tokens, and how they become rows.

    prepends_start: whether the start token stands in front of what a decoder reads, as always in training.
    """
    as_pairs = config.model.architecture == "encoder_decoder"
    start = tokenizer.vocabulary.start if prepends_start else None
    front = tokenizer.vocabulary.bos if as_pairs else start
    template = choose_template(config.tokenizer.chat_template, tokenizer)
    return ChatEncoder(tokenizer, template, front), ChatLayout(as_pairs, config.objective.inputs_length)


def check_chat_source(name: str, spec: str, columns: Columns, source: Source) -> None:
    """Raise UserError for a source without conversations, and for columns and templates, which they do not have.

    Args:
        name: the config field of the source, for errors.
        spec: the source, as the config names it.
    """
    if not isinstance(source, FileSource):
        raise UserError(f"{name}: {spec} has no conversations; give files:….jsonl with messages")
    if columns != Columns():
        raise UserError(
            f"{name}: columns and templates have no meaning for chat, which reads the columns messages, or prompt and "
            "completion; leave them unset"
        )


def chat_folder(source: FileSource, chat: ChatEncoder, layout: ChatLayout, hold_out_every: int) -> Path:
    """Return the folder with the stores of conversations. Build the stores if the cache lacks them."""
    facts = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "tokenizer": chat.tokenizer.sha256,
        "kind": "chat",
        "template": chat.template.sha256,
        "layout": layout._asdict(),
        "front": chat.front,
        "heldout": hold_out_every,
    }

    def build(folder: Path, advance: Callable[[int], None]) -> None:
        build_chat(folder, source.conversations(), chat, layout, hold_out_every, advance)

    return build_once(facts, source.num_bytes(), build)
