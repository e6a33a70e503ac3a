"""The tagging task: each word has a tag. For example, the tags mark named entities.

For tags B-x, I-x and O, the sums contain "entities" [3]: the number of true entities, of predicted entities, and of
entities that are both. Tags and entities that were cut off a sentence count as true, but not as predicted.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Batch
from t5lite.tasks.cross_entropy import Sums
from t5lite.tasks.task import CutTags, confusion, make_class_task

Array = jax.Array
HEAD = "tagger"
OUTSIDE, BEGIN, INSIDE = range(3)


def _predictions(logits: Array, batch: Batch, labels: Sequence[str], rows: Mapping[str, Any]) -> Sums:
    """Return {"confusion"}, and "entities" if the tags mark entities.

    rows: may have "next_answers" [B]: the tag of each sentence's first word that was cut off; -1: no word was cut off.
    """
    answers = batch.answers[HEAD]
    gold, is_word = jnp.maximum(answers, 0), answers >= 0
    sums = {"confusion": confusion(logits, gold, is_word.astype(jnp.float32))}
    if kinds := entity_kinds(labels):
        chosen, count = jnp.argmax(logits, axis=-1), jax.vmap(lambda *sides: entity_counts(*sides, *kinds))
        after = rows.get("next_answers")
        after = jnp.full(len(chosen), -1) if after is None else after
        sums["entities"] = jnp.sum(count(gold, chosen, is_word, after), axis=0)
    return sums


def entity_kinds(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (the part of each tag: OUTSIDE, BEGIN or INSIDE; the number of each tag's type).

    None if a tag is not O, B-x or I-x.
    """
    matches = [re.fullmatch(r"([BI])-(.+)|O", tag) for tag in tags]
    if not all(matches) or not any(match[2] for match in matches):
        return None
    types = sorted({match[2] for match in matches if match[2]})
    parts = [{"B": BEGIN, "I": INSIDE, None: OUTSIDE}[match[1]] for match in matches]
    return np.array(parts, np.int32), np.array([types.index(m[2]) if m[2] else -1 for m in matches], np.int32)


def sum_missed(cut_tags: CutTags, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the sums of the words that were cut off.

    "missed" [C]: how often each tag was cut off. "entities" [3], only for tags B-x, I-x and O: how many entities begin
    in the words that were cut off, then 0, 0.

    cut_tags: for each sentence, (the last tag that was kept, or -1; the tags that were cut off).
    """
    tags = np.concatenate([np.zeros(0, np.int64), *(after for _, after in cut_tags)]).astype(np.int64)
    sums = {"missed": np.bincount(tags, minlength=len(labels)).astype(np.float64)}
    if kinds := entity_kinds(labels):
        parts, types = kinds
        before = np.concatenate(
            [np.zeros(0, np.int64), *(np.r_[[last], after][:-1] for last, after in cut_tags if len(after))]
        )
        type_before = np.where(before < 0, -1, types[before.astype(np.int64)])
        begins = (parts[tags] == BEGIN) | ((parts[tags] == INSIDE) & (type_before != types[tags]))
        sums["entities"] = np.array([begins.sum(), 0.0, 0.0])
    return sums


def entity_counts(
    gold: Array, chosen: Array, counted: Array, next_tag: Array, parts: np.ndarray, types: np.ndarray
) -> Array:
    """Return float32 [3]: the number of entities in `gold`, in `chosen`, and in both.

    Two entities are the same if they have the same type, first word and last word. I-x begins a new entity after O, and
    after a tag with another type, as in the script of the CoNLL shared tasks.

    Args:
        gold, chosen: tags [L].
        counted: bool [L], the positions that have a tag.
        next_tag: the true tag of the word after the last word; -1: no such word. If a true entity continues there, no
            chosen entity can match it.
        parts, types: see `entity_kinds`.
    """
    order = jnp.argsort(~counted, stable=True)  # move the words to the front, and the pieces between them to the end
    is_word = counted[order]

    def find_entities(tags: Array) -> tuple[Array, Array, Array]:
        part = jnp.where(is_word, jnp.asarray(parts)[tags[order]], OUTSIDE)
        kind = jnp.where(part == OUTSIDE, -1, jnp.asarray(types)[tags[order]])
        before = jnp.concatenate([jnp.full(1, -1), kind[:-1]])
        begins = (part == BEGIN) | ((part == INSIDE) & (before != kind))
        place = jnp.arange(tags.shape[0])
        # For each position: the first later position at which no entity continues.
        stops = jnp.where((part == INSIDE) & ~begins, tags.shape[0], place)
        ends = jnp.append(jax.lax.cummin(stops, reverse=True)[1:], tags.shape[0])
        return begins, kind, ends

    (begins, kind, ends), (chosen_begins, chosen_kind, chosen_ends) = find_entities(gold), find_entities(chosen)
    words = jnp.sum(is_word)
    goes_on = (next_tag >= 0) & (jnp.asarray(parts)[next_tag] == INSIDE)
    goes_on &= (words > 0) & (kind[words - 1] == jnp.asarray(types)[next_tag])
    ends += goes_on & (ends == words)
    both = begins & chosen_begins & (kind == chosen_kind) & (ends == chosen_ends)
    return jnp.stack([jnp.sum(each, dtype=jnp.float32) for each in (begins, chosen_begins, both)])


TAGS = make_class_task(
    HEAD,
    name="tags",
    part="tagger",
    each="token",
    data="tags",
    metrics=("accuracy", "positive_f1", "macro_f1", "majority_accuracy", "most_chosen", "entity_f1"),
    loss_name="tags_loss",
    predictions=_predictions,
    sum_missed=sum_missed,
    read_out=lambda names, words: " ".join(f"{word}/{name}" for word, name in zip(words, names, strict=True)),
    has_labels=True,
    released={"bert": ("ForTokenClassification", "classifier")},
)
