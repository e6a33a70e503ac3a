"""The labels of a released head: their names and number, checked against the rows of the head's weights.

label_names({"id2label": {"0": "O", "1": "B-PER"}}, 2)      ("O", "B-PER")
label_names({"num_labels": 2}, 2)                           ("LABEL_0", "LABEL_1")
"""

from collections.abc import Mapping

from t5lite.interop.family import Json
from t5lite.system.errors import UserError


def label_names(json: Json, rows: int) -> tuple[str, ...]:
    """Return the name of each of a head's `rows` labels. Raises UserError if config.json's fields contradict it."""
    named = json.get("id2label")
    count = json.get("num_labels", rows)
    if count != rows:
        raise UserError(f"config.json: num_labels={count!r}, but the classifier has {rows} rows; correct it")
    names = tuple(f"LABEL_{i}" for i in range(rows)) if named is None else _from_ids(named, rows)
    _check_inverse(json.get("label2id"), names, named is None)
    return names


def _from_ids(named: object, rows: int) -> tuple[str, ...]:
    if not isinstance(named, Mapping):
        raise UserError(f"config.json: id2label should be an object {{id: name}}, but is {str(named)[:60]}")
    try:
        by_id = {int(key): str(name) for key, name in named.items()}
    except ValueError as error:
        raise UserError(f"config.json: id2label should have numbers as keys ({error}); correct it") from error
    if len(named) != rows:
        raise UserError(
            f"config.json: id2label has {len(named)} labels, but the classifier has {rows} rows; correct it"
        )
    lacking = next((i for i in range(rows) if i not in by_id), None)
    if lacking is not None:
        raise UserError(f"config.json: id2label has no label {lacking}; its ids should be 0 to {rows - 1}")
    names = tuple(by_id[i] for i in range(rows))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"config.json: id2label has the label {twice!r} twice; give each its own name")
    return names


def _check_inverse(ids: object, names: tuple[str, ...], unnamed: bool) -> None:
    """Raise UserError for a label2id that is not the inverse of the names."""
    if ids is None:
        return
    if not isinstance(ids, Mapping):
        raise UserError(f"config.json: label2id should be an object {{name: id}}, but is {str(ids)[:60]}")
    wrong = next((name for i, name in enumerate(names) if ids.get(name) != i), None)
    if wrong is not None or len(ids) != len(names):
        reason = "has no id2label beside it" if unnamed else "contradicts id2label"
        place = f" at {wrong!r}" if wrong is not None else ""
        raise UserError(f"config.json: label2id {reason}{place}; correct one of them")


def refuse_problem_type(json: Json, rows: int) -> None:
    """Raise UserError if a head for texts does not answer with one label out of several."""
    kind = json.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise UserError(f"config.json: problem_type={kind!r} is not supported, only 'single_label_classification'")
    if rows == 1:
        raise UserError("config.json: a classifier of one label is a regression, which is not supported")
