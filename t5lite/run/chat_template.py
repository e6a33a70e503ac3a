"""What follows from a run's chat template: the special tokens that the tokenizer needs, and where answers stop."""

import dataclasses

from ml_collections import ConfigDict

from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.templates import list_marks
from t5lite.data.tokenizers.tokenizer import find_chat_template
from t5lite.objectives.catalogue import find_kind, special_tokens
from t5lite.system.vocabulary import Rules


def list_specials(config: ConfigDict, place: str | None = None) -> tuple[str, ...]:
    """Return the special tokens of a run: those of the config, else those that the objective or its template needs.

    place: where the run's tokenizer comes from; None: the config says it.
    """
    specials = special_tokens(config.tokenizer, config.objective, config.model.architecture)
    if config.tokenizer.specials is not None or find_kind(config.objective).data != "chat":
        return specials
    place = place or config.tokenizer.path or config.init_from
    has_own = place is not None and find_chat_template(place) is not None
    return (*specials, *list_marks(config.tokenizer.chat_template, has_own))


def keep_template(chat: ChatEncoder, architecture: str) -> None:
    """Give the encoder's tokenizer its template, and the rule that an answer of a decoder ends at a stop.

    The tokenizer is saved with both, so that they are known wherever the run is read. An encoder-decoder ends its
    answers with EOS.
    """
    tokenizer = chat.tokenizer
    tokenizer.chat_template = chat.template.text
    if architecture == "decoder":
        rules = tokenizer.rules or Rules()
        tokenizer.rules = dataclasses.replace(rules, stops=tuple(dict.fromkeys([*chat.stops, *rules.stops])))
