"""Build a Transformer from a config's `model` fields."""

from collections.abc import Mapping
from typing import Any

from t5lite.config import require
from t5lite.model.config import VOCAB_MULTIPLE, ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import OF_TOKENS, Heads
from t5lite.system.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")


def _stacks_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ModelConfig, without heads. The architecture decides which stacks have layers.

    Raises UserError for an unknown architecture.
    """
    fields = dict(fields)
    architecture = fields.pop("architecture")
    known = ", ".join(ARCHITECTURES)
    require(architecture in ARCHITECTURES, "model.architecture", f"{architecture!r} is unknown; known: {known}")
    if architecture == "decoder":
        fields["num_encoder_layers"] = 0
    elif architecture == "encoder":
        fields["num_decoder_layers"] = 0
    if architecture != "encoder":
        fields["token_types"] = 0
    return fields


def settled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` with the model's own value wherever they leave one open (None), except `vocab_size`.

    Models are the same where settled fields, heads and vocabulary rows are equal.
    """
    rows = fields["vocab_size"]
    model = ModelConfig(**_stacks_of(fields) | {"vocab_size": rows or VOCAB_MULTIPLE})
    derived = {"num_kv_heads": model.kv_heads, "scale_scores": model.score_scale != 1.0,
               "scale_logits": model.logit_scale != 1.0, "initialisation": "t5" if model.starts_like_t5 else "gpt2",
               "vocab_size": rows}  # fmt: skip
    return {name: derived.get(name, getattr(model, name, None)) for name in fields}


def make_model(fields: Mapping[str, Any], vocabulary: Vocabulary, heads: Heads = OF_TOKENS) -> Transformer:
    """Return the model of `fields`. Its embedding has at least a row for every id of `vocabulary`.

    heads: the outputs that the objective asks for. Without a `vocab_size` in `fields`, the rows are the
    vocabulary's, rounded up to a multiple of 128. Raises UserError for a `vocab_size` with too few rows.
    """
    fields = _stacks_of(fields)
    fields["heads"] = heads
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids; raise or unset the field",
    )
    return Transformer(ModelConfig(**fields))
