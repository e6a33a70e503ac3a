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

    What the fields leave open follows from the architecture: which stacks have layers, and the kind of positions.
    heads: those that the objective asks for.
    """
    fields = dict(fields)
    architecture = fields.pop("architecture")
    known = ", ".join(ARCHITECTURES)
    require(architecture in ARCHITECTURES, "model.architecture", f"{architecture!r} is none of {known}")
    if architecture == "decoder":
        fields["num_encoder_layers"] = 0
    elif architecture == "encoder":
        fields["num_decoder_layers"] = 0
    alone = architecture == "encoder"
    fields["heads"] = heads
    # The same whatever the objective needs, so that pre-training and fine-tuning share all but the heads.
    fields["token_types"] = (2 if fields["token_types"] is None else fields["token_types"]) if alone else 0
    fields["mlm_transform"] = bool(fields["mlm_transform"] and alone and heads.vocabulary)
    fields["positions"] = fields["positions"] or ("rotary" if architecture == "decoder" else "relative_bias")
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids",
    )
    return Transformer(ModelConfig(**fields))
