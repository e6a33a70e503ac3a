"""BERT: an encoder with a head for the vocabulary, the next sentence, or labels.

The field `architectures` of config.json tells which head the weights have. If it names no known class, the tensors
tell.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5lite.interop import family
from t5lite.interop.dropout import Rate
from t5lite.interop.family import Entry, Family, Json, Shape
from t5lite.interop.labels import read_label_names, read_problem_type
from t5lite.model.config import ModelConfig
from t5lite.objectives.masked_lm import NEXT_SENTENCE
from t5lite.objectives.objective import Heads
from t5lite.tasks.label import LABEL
from t5lite.tasks.labels import LABELS
from t5lite.tasks.number import NUMBER
from t5lite.tasks.span import SPAN
from t5lite.tasks.table import TASKS
from t5lite.tasks.tags import TAGS

FIXED = {
    "positions": "learned",
    "position_offset": 0,
    "norm": "layer",
    "norm_position": "post",
    "biases": "all",
    "embedding_norm": True,
    "scale_embeddings": False,
    "qk_norm": False,
    "tie_embeddings": True,
    "logits_soft_cap": None,
}
POOLER, CLASSIFIER, SPANS = "bert.pooler.dense.weight", "classifier.weight", "qa_outputs.weight"
VOCABULARY, IS_NEXT = "cls.predictions.bias", "cls.seq_relationship.weight"
# {kind: the tensors that weights of this kind must have}
NEEDED_TENSORS = {
    "Model": (),
    "ForMaskedLM": (VOCABULARY,),
    "LMHeadModel": (VOCABULARY,),
    "ForPreTraining": (VOCABULARY, IS_NEXT),
    "ForNextSentencePrediction": (IS_NEXT,),
    "ForSequenceClassification": (CLASSIFIER, POOLER),
    "ForTokenClassification": (CLASSIFIER,),
    "ForQuestionAnswering": (SPANS,),
    "ForMultipleChoice": (CLASSIFIER, POOLER),
}
# {regex of a tensor: its kind}, for the heads that no model here has
KEPT_HEADS = {r"classifier\..*": "ForMultipleChoice"}
# {problem_type of config.json: the task of a head for texts}
PROBLEMS = {
    "single_label_classification": LABEL,
    "multi_label_classification": LABELS,
    "regression": NUMBER,
}


def _read_model_heads(json: Json, shapes: Mapping[str, Shape]) -> Heads:
    """Return the heads that answer. Raises UserError if the labels in config.json contradict the weights."""
    kind = family.read_kind(json)
    if kind not in NEEDED_TENSORS and CLASSIFIER in shapes:
        kind = "ForSequenceClassification" if POOLER in shapes else "ForTokenClassification"
    if kind not in NEEDED_TENSORS and SPANS in shapes:
        kind = "ForQuestionAnswering"
    if kind == "ForQuestionAnswering" and SPANS in shapes:
        return Heads(False, (SPAN.make_head(),))
    if kind in ("ForSequenceClassification", "ForTokenClassification") and CLASSIFIER in shapes:
        rows = len(read_label_names(json, shapes[CLASSIFIER][0]))
        task = TAGS if kind == "ForTokenClassification" else PROBLEMS[read_problem_type(json, rows)]
        return Heads(False, (task.make_head(rows),))
    # Without a known kind, all stored tensors count.
    head_tensors = NEEDED_TENSORS.get(kind, tuple(shapes))
    return Heads(VOCABULARY in head_tensors, (NEXT_SENTENCE,) if IS_NEXT in head_tensors else ())


def _read_fields(json: Json, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    supported = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    family.refuse_others(json, {**supported, "tie_word_embeddings": True, "pruned_heads": {}})
    return {
        **FIXED,
        **family.COMMON_SCALES,
        **family.read_heads(json, "hidden_size", "num_attention_heads"),
        "architecture": "encoder",
        "num_encoder_layers": family.read_count(json, "num_hidden_layers"),
        "num_decoder_layers": 0,
        "vocab_size": family.read_count(json, "vocab_size"),
        "d_ff": family.read_count(json, "intermediate_size"),
        "max_positions": family.read_count(json, "max_position_embeddings"),
        "norm_epsilon": family.read_number(json, "layer_norm_eps", 1e-12),
        "activation": family.read_choice(json, "hidden_act", family.UNGATED, "gelu"),
        "token_types": family.read_count(json, "type_vocab_size"),
        "mlm_transform": True,
        "logits_bias": True,
        "heads": _read_model_heads(json, shapes),
    }


def _write_fields(config: ModelConfig) -> dict[str, Any]:
    family.require_same(config, FIXED | family.even_head_fields(config) | {"architecture": "encoder"}, "BERT")
    heads = config.heads
    if heads.vocabulary:
        family.require_same(config, {"mlm_transform": True, "logits_bias": True}, "BERT")
    kind = "ForMaskedLM" if heads.vocabulary else "Model"
    for head in heads.others:
        kind, _ = TASKS[head.name].released["bert"]
    tasks = [TASKS[head.name] for head in heads.others]
    with_rows = [head for head, task in zip(heads.others, tasks, strict=True) if task in (*PROBLEMS.values(), TAGS)]
    labels = {str(i): f"LABEL_{i}" for head in with_rows for i in range(head.size)}
    problem = next((name for name, task in PROBLEMS.items() if task in tasks and task is not LABEL), None)
    return {
        "model_type": "bert",
        "architectures": [f"Bert{kind}"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_encoder_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": family.find_released_activation(family.UNGATED, config, "BERT"),
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": True,
        **({"id2label": labels} if labels else {}),
        **({"problem_type": problem} if problem else {}),
    }


def _list_entries(config: ModelConfig) -> list[Entry]:
    tensor = "bert.embeddings."
    entries = [
        Entry("token_embedding/embedding", f"{tensor}word_embeddings.weight"),
        Entry("token_type_embedding/embedding", f"{tensor}token_type_embeddings.weight"),
        Entry("encoder/position_embedding/embedding", f"{tensor}position_embeddings.weight"),
        Entry("encoder/embedding_norm/scale", f"{tensor}LayerNorm.weight"),
        Entry("encoder/embedding_norm/bias", f"{tensor}LayerNorm.bias"),
    ]
    kernels = {f"self_attention/{name}": f"attention.self.{name}" for name in ("query", "key", "value")}
    kernels |= {"self_attention/output": "attention.output.dense"}
    kernels |= {"mlp/up": "intermediate.dense", "mlp/down": "output.dense"}
    norms = {"self_attention/norm": "attention.output.LayerNorm", "mlp/norm": "output.LayerNorm"}
    entries += family.layer_entries("encoder/layers/", "bert.encoder.layer.{n}.", kernels, norms, biases=True)
    heads = config.heads
    dense: dict[str, str] = {}
    if heads.pooled:
        dense["pooler"] = "bert.pooler.dense"
    if heads.vocabulary:
        dense["mlm_transform/dense"] = "cls.predictions.transform.dense"
        norm = {"mlm_transform/norm": "cls.predictions.transform.LayerNorm"}
        entries += family.layer_entries("", "", {}, norm, biases=True)
        entries.append(Entry("lm_head/bias", "cls.predictions.bias"))
    dense |= {head.name: TASKS[head.name].released["bert"][1] for head in heads.others}
    return entries + family.layer_entries("", "", dense, {}, biases=True)


BERT = Family(
    model_types=("bert",),
    fields=_read_fields,
    to_json=_write_fields,
    entries=_list_entries,
    dropout={
        "hidden_dropout_prob": Rate(("embedding", "residual"), 0.1),
        "attention_probs_dropout_prob": Rate(("attention",), 0.1),
        "classifier_dropout": Rate(("head",), "hidden_dropout_prob"),
    },
    kinds=dict.fromkeys((*NEEDED_TENSORS, ""), ()),
    answering_kinds=tuple(kind for kind in (*NEEDED_TENSORS, "") if kind != "ForMultipleChoice"),
    needed_tensors=NEEDED_TENSORS,
    kinds_of_kept_heads=KEPT_HEADS,
    buffers=(r"bert\.embeddings\.(position_ids|token_type_ids)",),
    more_parts=lambda model: (dataclasses.replace(model, heads=Heads(True, (NEXT_SENTENCE,)), mlm_transform=True),),
    renames=(
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
    ),
    aliases={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": VOCABULARY,
    },
)
