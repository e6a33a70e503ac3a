"""Build a Transformer from the `model` fields of a config."""

from collections.abc import Mapping
from typing import Any

from t5lite.config import require
from t5lite.model.config import VOCAB_MULTIPLE, ModelConfig
from t5lite.model.transformer import Transformer
from t5lite.objectives.objective import VOCABULARY_ONLY, Heads
from t5lite.system.vocabulary import Vocabulary

ARCHITECTURES = ("encoder_decoder", "decoder", "encoder")


def _resolve_stacks(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ModelConfig, without `heads`. The architecture decides which stacks have layers.

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
    return fields


def complete_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` with the value that the model uses in place of each None. `vocab_size` is unchanged.

    Two models are the same if their complete fields, heads and vocabulary rows are equal.
    """
    rows = fields["vocab_size"]
    model = ModelConfig(**_resolve_stacks(fields) | {"vocab_size": rows or VOCAB_MULTIPLE})
    derived = {"num_kv_heads": model.kv_heads, "scale_scores": model.score_scale != 1.0,
               "scale_logits": model.logit_scale != 1.0, "initialisation": "t5" if model.starts_like_t5 else "gpt2",
               "vocab_size": rows}  # fmt: skip
    return {name: derived.get(name, getattr(model, name, None)) for name in fields}


def make_model(fields: Mapping[str, Any], vocabulary: Vocabulary, heads: Heads = VOCABULARY_ONLY) -> Transformer:
    """Return the model of `fields`. Its embedding has a row for each id of `vocabulary`.

    heads: the outputs that the objective needs. If `vocab_size` is None, the embedding has as many rows as the
    vocabulary, rounded up to a multiple of 128. Raises UserError if `vocab_size` is too small.
    """
    fields = _resolve_stacks(fields)
    fields["heads"] = heads
    fields["vocab_size"] = fields["vocab_size"] or -(-vocabulary.rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    require(
        fields["vocab_size"] >= vocabulary.rows,
        "model.vocab_size",
        f"{fields['vocab_size']} rows are too few for the tokenizer's {vocabulary.rows} ids; raise or unset the field",
    )
    return Transformer(ModelConfig(**fields))
