"""From a config's `model` fields to a Transformer."""

from collections.abc import Mapping
from typing import Any

from t5lite.config import require
from t5lite.model.config import VOCAB_MULTIPLE, ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import OF_TOKENS, Heads
from t5lite.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")


def make_model(fields: Mapping[str, Any], vocabulary: Vocabulary, heads: Heads = OF_TOKENS) -> Transformer:
    """The model of `fields`. Its embedding has a row for every id of `vocabulary`, to a multiple of 128.

    Which stacks have layers follows from the architecture. heads: those that the objective asks for.
    """
    fields = dict(fields)
    architecture = fields.pop("architecture")
    known = ", ".join(ARCHITECTURES)
    require(architecture in ARCHITECTURES, "model.architecture", f"{architecture!r} is none of {known}")
    if architecture == "decoder":
        fields["num_encoder_layers"] = 0
    elif architecture == "encoder":
        fields["num_decoder_layers"] = 0
    fields["heads"] = heads
    if architecture != "encoder":
        fields["token_types"] = 0
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids",
    )
    return Transformer(ModelConfig(**fields))
