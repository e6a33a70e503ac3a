"""Read .arrow files, in Arrow's streaming format or its file format.

The streaming format is the one that `save_to_disk` of the datasets library writes. One record batch at a time is in
memory. Where the metadata of the schema says that a column holds classes, their names stand for their numbers:

    {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.system.errors import UserError

FILE_MARK = b"ARROW1"  # at the start of the file format
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # at the end of the streaming format
METADATA = b"huggingface"


def read_schema(file: BinaryIO) -> Any:
    """Return the schema of an open .arrow file, a pyarrow.Schema."""
    with _open(file, None) as reader:
        return reader.schema


def read_values(file: BinaryIO, names: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """Yield {column: value} for each row of an open .arrow file, for the columns in `names`.

    Raises UserError for a stream without its end, and for the number of a class without a name. Raises errors of
    pyarrow for other faults.
    """
    schema = read_schema(file)
    _refuse_unfinished_stream(file, path)
    classes = _find_class_names(schema.metadata or {})
    number = 0
    with _open(file, sorted({schema.get_field_index(name) for name in names})) as reader:
        for batch in _iterate_batches(reader):
            batch.validate(full=True)  # wrong offsets of a damaged file would end the process
            columns = {name: batch.column(name) for name in names}
            for place in range(len(batch)):
                number += 1
                yield {
                    name: _name_classes(column[place].as_py(), classes.get(name), f"{path}, row {number}", name)
                    for name, column in columns.items()
                }


def _open(file: BinaryIO, fields: list[int] | None) -> Any:
    """Return pyarrow's reader. fields: the indices of the columns to read; None: all."""
    from pyarrow import ipc

    file.seek(0)
    is_stream = file.read(len(FILE_MARK)) != FILE_MARK
    file.seek(0)
    options = ipc.IpcReadOptions() if fields is None else ipc.IpcReadOptions(included_fields=fields)
    return (ipc.open_stream if is_stream else ipc.open_file)(file, options=options)


def _iterate_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _refuse_unfinished_stream(file: BinaryIO, path: Path) -> None:
    """Raise UserError for a stream that lacks its end. Arrow would take a lost batch for the end."""
    file.seek(0)
    if file.read(len(FILE_MARK)) == FILE_MARK:
        return
    file.seek(-len(END_OF_STREAM), os.SEEK_END)
    if file.read() != END_OF_STREAM:
        raise UserError(f"{path} is cut short: the stream has no end; write it again")


def _find_class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return {column: the names of its classes} for the columns of classes, and of lists of classes."""
    try:
        features = json.loads(metadata[METADATA])["info"]["features"]
        found = {name: _unwrap(feature) for name, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # no metadata, or of another kind
        return {}
    return {name: feature["names"] for name, feature in found.items() if _has_class_names(feature)}


def _unwrap(feature: Any) -> Any:
    """Return the feature of the items of a list; any other feature as it is."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    is_list = isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList")
    return feature.get("feature") if is_list else feature


def _has_class_names(feature: Any) -> bool:
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return False
    names = feature.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _name_classes(value: Any, names: list[str] | None, place: str, column: str) -> Any:
    """Return the name of the class with the number `value`; for a list of numbers, a list of names."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_name_classes(item, names, place, column) for item in value]
    if not (isinstance(value, int) and 0 <= value < len(names)):
        raise UserError(
            f"{place}: column {column!r} is {value!r}, but its classes have the numbers 0 to {len(names) - 1}; "
            "remove the row (-1 stands for an unknown class)"
        )
    return names[value]
