"""Decide whether the targets of pairs are a closed set of labels, or free text.

A token store counts the different targets of its source in its card, in "labels".
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from t5lite.data.kinds import KINDS
from t5lite.data.store import Span
from t5lite.system.errors import UserError, nearest

# Targets are labels by default if there are at most this many, each with this many pairs on average.
FEW_LABELS, PAIRS_PER_LABEL = 100, 10

Labels = tuple[str, ...] | None  # a closed set of targets, sorted; None: targets are free text


def find_labels(
    wanted: bool | None,
    kind: str,
    train: Iterable[Span],
    heldout: Mapping[str, Span],
    field: str = "config.data.labels",
) -> Labels:
    """Return the closed set of training targets. Tags are always a closed set.

    Args:
        wanted: whether the user wants labels; None: decide by the number of targets.
        kind: a key of `kinds.KINDS`.
        heldout: held-out sets by name. Raises UserError for a target outside the closed set.
        field: the field that says `wanted`, for errors.
    """
    if not KINDS[kind].has_labels and (kind != "pairs" or wanted is False):
        return None
    all_labels = [span.store.card["labels"] for span in train]
    counts: Counter[str] = Counter()
    for labels in all_labels if None not in all_labels else ():
        counts.update(labels)
    closed = len(counts) <= FEW_LABELS and counts.total() >= PAIRS_PER_LABEL * len(counts)
    if counts and (wanted or closed or KINDS[kind].has_labels):
        refuse_unknown_labels(heldout, counts)
        return tuple(sorted(counts))
    if wanted:
        raise UserError(
            f"{field}: the training targets are no closed set (over 1,000 different ones, or over 1,000 "
            "characters, or rows with several references); unset the field, or set another config.objective.answer"
        )
    return None


def find_member_labels(
    wanted: Mapping[str, bool | None], train: Mapping[str, Span], heldout: Mapping[str, Span]
) -> dict[str, Labels]:
    """Return {member: closed set of its own targets} for a mixture of pairs.

    Args:
        wanted: {member: whether the user wants labels}, as in `find_labels`.
        train: {member: pairs}.
        heldout: {name of the held-out set: pairs}, for the members that have one.
    """
    names = {member: f"validation_{member}" for member in train}
    return {
        member: find_labels(
            wanted[member],
            "pairs",
            [span],
            {name: heldout[name] for name in [names[member]] if name in heldout},
            f"config.data.labels, for the member {member} of the mixture",
        )
        for member, span in train.items()
    }


def join_labels(member_labels: Mapping[str, Labels]) -> Labels:
    """Return the labels of all members together; None if a member has free text."""
    if None in member_labels.values():
        return None
    return tuple(sorted({label for labels in member_labels.values() for label in labels}))


def check_positive_label(label: str | None, closed_sets: Iterable[Labels]) -> None:
    """Raise UserError if `eval.positive_label` is in none of the closed sets, those of the held-out sets."""
    known = sorted({each for labels in closed_sets for each in labels or ()})
    if label is not None and label not in known:
        remedy = nearest(label, known) if known else "it has no labels at all, so leave the field unset"
        raise UserError(f"config.eval.positive_label: the data has no label {label!r}; {remedy}")


def refuse_unknown_labels(heldout: Mapping[str, Span], labels: Iterable[str]) -> None:
    """Raise UserError for a held-out target that is not among the `labels` of training."""
    way_out = "mend the file, or set config.data.labels=False if targets are free text"
    for name, span in heldout.items():
        card = span.store.card
        if card["labels"] is None:
            problem = "over 1,000 different targets, or a target of over 1,000 characters"
            if card.get("pairs_with_references"):
                problem = "some rows have several references"
            raise UserError(f"data.{name}: {problem}, but the training targets are a closed set; {way_out}")
        unknown = sorted(set(card["labels"]) - set(labels))
        if not unknown:
            continue
        first, more = unknown[0], f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        if place := card.get("places", {}).get(first):
            raise UserError(f"{place}: the tag or label {first!r}{more} never occurs in training; mend the file")
        if f"{first}.0" in labels:
            way_out = f'whole numbers are read without ".0"; write the text "{first}.0" instead'
        raise UserError(f"data.{name}: the label {first!r}{more} never occurs in the training targets; {way_out}")
