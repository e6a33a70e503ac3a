"""What the likeliest answers of a batch come to, as sums that add up over batches.

of the vocabulary     "correct", targets that the likeliest token meets
of plain text         "bytes" of text that the targets stand for
of labels and tags    "confusion" [C, C], how often each true one (row) was taken for each (column)
of tags B-x, I-x, O   "entities" [3]: true ones, predicted ones, those that are both

What was cut off a sentence was not predicted: its tags and entities are true ones that were missed, `missed_sums`.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.model.transformer import Outputs
from t5lite.objectives.batch import Batch
from t5lite.objectives.objective import Objective, Row, make_batch
from t5lite.system.vocabulary import TokenTable
from t5lite.training.loss import Sums, label_weights

Array = jax.Array
OUTSIDE, BEGIN, INSIDE = range(3)


def prediction_sums(outputs: Outputs, batch: Batch, objective: Objective, next_tags: Array | None = None) -> Sums:
    """The module's sums of a batch, float32, as far as the objective's heads have a meaning for them.

    next_tags [B]: of the first word that was cut off each sentence, -1 where none was; None: of none.
    """
    heads, sums = objective.heads, {}
    if heads.vocabulary:
        correct = (jnp.argmax(outputs.tokens, axis=-1) == batch.targets) * batch.weights
        sums["correct"] = jnp.sum(correct)
    if heads.tagger:
        chosen = jnp.argmax(outputs.tokens, axis=-1)
        sums["confusion"] = confusion(batch.targets, chosen, batch.weights, heads.tagger)
        if kinds := entity_kinds(objective.labels):
            count = jax.vmap(lambda *sides: entity_counts(*sides, *kinds))
            after = jnp.full(len(chosen), -1) if next_tags is None else next_tags
            sums["entities"] = jnp.sum(count(batch.targets, chosen, batch.weights > 0, after), axis=0)
    if heads.classes:
        chosen = jnp.argmax(outputs.labels, axis=-1)
        sums["confusion"] = confusion(batch.labels, chosen, label_weights(batch), heads.classes)
    return sums


def byte_sums(objective: Objective, keys: Array, rows: Row, weights: Array, table: TokenTable) -> Sums:
    """{"bytes"} of the targets that `objective` makes of `rows`: windows with "begins", 1 where a document begins.

    The token that begins a document counts without the space that the tokenizer put in front of it. To be found again
    among the targets, it has an id beyond all others here. weights [B, T]: of the targets.
    """
    marked = {**rows, "tokens": rows["tokens"] + rows["begins"] * len(table.num_bytes)}
    targets = make_batch(objective, keys, marked, table).targets
    num_bytes = jnp.concatenate([jnp.asarray(table.num_bytes), jnp.asarray(table.num_bytes_first)])
    return {"bytes": jnp.sum(num_bytes[targets] * weights)}


def confusion(gold: Array, chosen: Array, weights: Array, classes: int) -> Array:
    """Float32 [C, C] of int32 classes of one shape: the weight of each pair (true, chosen)."""
    pairs = jnp.where(weights > 0, gold * classes + chosen, classes * classes)
    return jnp.zeros(classes * classes).at[pairs].add(weights, mode="drop").reshape(classes, classes)


def entity_kinds(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each tag OUTSIDE, BEGIN or INSIDE, and the number of its type; None where one is not O, B-x or I-x."""
    matches = [re.fullmatch(r"([BI])-(.+)|O", tag) for tag in tags]
    if not all(matches) or not any(match[2] for match in matches):
        return None
    types = sorted({match[2] for match in matches if match[2]})
    parts = [{"B": BEGIN, "I": INSIDE, None: OUTSIDE}[match[1]] for match in matches]
    return np.array(parts, np.int32), np.array([types.index(m[2]) if m[2] else -1 for m in matches], np.int32)


def missed_sums(cut_tags: Sequence[tuple[int, np.ndarray]], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """What the cut words of sentences come to: "missed" [C], how often each tag stands there; for tags B-x, I-x, O also
    "entities" [3], of which the first counts those that begin there.

    cut_tags: a pair for each sentence: the last tag that was kept (-1: none), and the tags that were cut off.
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
    """Float32 [3]: entities of the tags `gold`, of `chosen`, and of both, [L] each, where `counted`.

    An entity is a type, where it begins and where it ends. I-x after O or after another type begins one, as in the
    CoNLL shared tasks' script. next_tag: the true tag of the word after the last; where an entity goes on there, it
    ends where no predicted one can.
    """
    order = jnp.argsort(~counted, stable=True)  # words in front, the pieces between them out of the way
    is_word = counted[order]

    def entities(tags: Array) -> tuple[Array, Array, Array]:
        part = jnp.where(is_word, jnp.asarray(parts)[tags[order]], OUTSIDE)
        kind = jnp.where(part == OUTSIDE, -1, jnp.asarray(types)[tags[order]])
        before = jnp.concatenate([jnp.full(1, -1), kind[:-1]])
        begins = (part == BEGIN) | ((part == INSIDE) & (before != kind))
        place = jnp.arange(tags.shape[0])
        # The first place after this one at which no entity goes on.
        stops = jnp.where((part == INSIDE) & ~begins, tags.shape[0], place)
        ends = jnp.append(jax.lax.cummin(stops, reverse=True)[1:], tags.shape[0])
        return begins, kind, ends

    (begins, kind, ends), (their_begins, their_kind, their_ends) = entities(gold), entities(chosen)
    words = jnp.sum(is_word)
    goes_on = (next_tag >= 0) & (jnp.asarray(parts)[next_tag] == INSIDE)
    goes_on &= (words > 0) & (kind[words - 1] == jnp.asarray(types)[next_tag])
    ends += goes_on & (ends == words)
    both = begins & their_begins & (kind == their_kind) & (ends == their_ends)
    return jnp.stack([jnp.sum(each, dtype=jnp.float32) for each in (begins, their_begins, both)])
