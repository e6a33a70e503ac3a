"""Read the labels of a released head, and check their number against the rows of the head's weights.

read_label_names({"id2label": {"0": "O", "1": "B-PER"}}, 2)      ("O", "B-PER")
read_label_names({"num_labels": 2}, 2)                           ("LABEL_0", "LABEL_1")
"""

from collections.abc import Mapping

from t5lite.interop.family import Json
from t5lite.system.errors import UserError, nearest


def read_label_names(json: Json, rows: int) -> tuple[str, ...]:
    """Return the name of each of a head's `rows` labels. Raises UserError if config.json's fields contradict it."""
    id2label = json.get("id2label")
    count = json.get("num_labels", rows)
    if count != rows:
        raise UserError(f"config.json: num_labels={count!r}, but the classifier has {rows} rows; correct it")
    names = tuple(f"LABEL_{i}" for i in range(rows)) if id2label is None else _read_id2label(id2label, rows)
    _check_inverse(json.get("label2id"), names, id2label is None)
    return names


def _read_id2label(id2label: object, rows: int) -> tuple[str, ...]:
    if not isinstance(id2label, Mapping):
        raise UserError(
            f"config.json: id2label should be an object {{id: name}}, but is {str(id2label)[:60]}; correct it"
        )
    try:
        by_id = {int(key): str(name) for key, name in id2label.items()}
    except ValueError as error:
        raise UserError(f"config.json: id2label should have numbers as keys ({error}); correct it") from error
    if len(id2label) != rows:
        raise UserError(
            f"config.json: id2label has {len(id2label)} labels, but the classifier has {rows} rows; correct it"
        )
    lacking = next((i for i in range(rows) if i not in by_id), None)
    if lacking is not None:
        raise UserError(f"config.json: id2label has no label {lacking}; correct its ids to 0 … {rows - 1}")
    names = tuple(by_id[i] for i in range(rows))
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"config.json: id2label has the label {repeated!r} twice; give each label its own name")
    return names


def _check_inverse(ids: object, names: tuple[str, ...], unnamed: bool) -> None:
    """Raise UserError for a label2id that is not the inverse of the names."""
    if ids is None:
        return
    if not isinstance(ids, Mapping):
        raise UserError(f"config.json: label2id should be an object {{name: id}}, but is {str(ids)[:60]}; correct it")
    wrong = next((name for i, name in enumerate(names) if ids.get(name) != i), None)
    if wrong is not None or len(ids) != len(names):
        reason = "is set without id2label" if unnamed else "contradicts id2label"
        place = f" at {wrong!r}" if wrong is not None else ""
        raise UserError(f"config.json: label2id {reason}{place}; correct one of them")


def read_problem_type(json: Json, rows: int) -> str:
    """Return the kind of answer of a head for texts; without problem_type, one row means a regression.

    Raises UserError for an unknown problem_type, and for a regression with several rows.
    """
    known = ("single_label_classification", "multi_label_classification", "regression")
    kind = json.get("problem_type") or (known[2] if rows == 1 else known[0])
    if kind not in known:
        raise UserError(f"config.json: problem_type={kind!r} is unknown; {nearest(str(kind), known)}")
    if (kind == "regression") != (rows == 1):
        raise UserError(f"config.json: problem_type={kind!r} does not go with a classifier of {rows} rows; correct it")
    return kind
