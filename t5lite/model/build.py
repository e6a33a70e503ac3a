"""From a config's `model` fields to a Transformer."""

from collections.abc import Mapping
from typing import Any

from t5lite.config import require
from t5lite.model.config import VOCAB_MULTIPLE, ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import OF_TOKENS, Heads
from t5lite.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")


def _of_architecture(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with what follows from the architecture: which stacks have layers, the kind of positions, token types.

    The same whatever the objective needs, so that pre-training and fine-tuning share all but the heads.
    """
    architecture, fields = fields["architecture"], dict(fields)
    if architecture == "decoder":
        fields["num_encoder_layers"] = 0
    elif architecture == "encoder":
        fields["num_decoder_layers"] = 0
    alone = architecture == "encoder"
    fields["token_types"] = (2 if fields["token_types"] is None else fields["token_types"]) if alone else 0
    fields["mlm_transform"] = bool(fields["mlm_transform"] and alone)
    fields["positions"] = fields["positions"] or ("rotary" if architecture == "decoder" else "relative_bias")
    return fields


def settled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with all that they leave open (None), as ModelConfig understands it, but for `vocab_size`.

    Models whose settled fields, heads and vocabulary rows are equal are the same model.
    """
    fields = _of_architecture(fields)
    like_t5 = fields["positions"] == "relative_bias"
    for name, usual in {
        "num_kv_heads": fields["num_heads"],
        "scale_scores": not like_t5,
        "scale_logits": like_t5 and fields["tie_embeddings"],
        "initialisation": "t5" if like_t5 else "gpt2",
    }.items():
        if fields[name] is None:
            fields[name] = usual
    return fields


def make_model(fields: Mapping[str, Any], vocabulary: Vocabulary, heads: Heads = OF_TOKENS) -> Transformer:
    """The model of `fields`. Its embedding has a row for every id of `vocabulary`, to a multiple of 128.

    heads: those that the objective asks for.
    """
    architecture, known = fields["architecture"], ", ".join(ARCHITECTURES)
    require(architecture in ARCHITECTURES, "model.architecture", f"{architecture!r} is none of {known}")
    fields = _of_architecture(fields)
    del fields["architecture"]
    fields["heads"] = heads
    fields["mlm_transform"] = fields["mlm_transform"] and heads.vocabulary
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids",
    )
    return Transformer(ModelConfig(**fields))
