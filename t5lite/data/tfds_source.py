"""Read documents and pairs from TFDS datasets and from `pydocs`. The files are array_record, read by index.

t5lite never imports TensorFlow: datasets are prepared with file_format='array_record' and read as data sources. If the
code that prepares a dataset needs TensorFlow, prepare the dataset on a machine where TensorFlow is installed.
"""

import contextlib
import difflib
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from t5lite.data.columns import Columns, Record
from t5lite.data.files import Fragment, TaggedSentence, split_text
from t5lite.data.readers import read_text
from t5lite.system.errors import UserError, nearest
from t5lite.system.network import refuse_silent_hosts

# Folders of TFDS whose datasets are known only after an import. TFDS imports its folders one by one, and stops at the
# first one that needs TensorFlow.
FOLDERS_OF_TEXT = ("question_answering", "ranking", "summarization", "text", "text_simplification", "translate")
ROWS_PER_READ = 1024  # a single record takes about 100 µs to read; in a read of many records, each takes a tenth

_NAME = re.compile(r"[\w-]+(?:/[\w.+-]+)?(?::[\w.*]+)?")


class Records(NamedTuple):
    """The records of a split by index, its size in bytes if known, and {labelled column: class names}."""

    rows: Sequence[dict[str, Any]]
    num_bytes: int | None
    class_names: dict[str, Sequence[str]]


@dataclass(frozen=True)
class RecordSource:
    """One split of a dataset. load: returns the records; the first read calls it and so prepares the dataset."""

    name: str
    facts: dict[str, Any]
    load: Callable[[], Records]
    columns: Columns

    def fragments(self) -> Iterator[Fragment]:
        """Yield the text of the documents. Leave out empty texts. Raises UserError for a missing column."""
        for record in self.records():
            if text := self.columns.make_text(record.read):
                yield from split_text(text)

    def pairs(self) -> Iterator[tuple[str, ...]]:
        """Yield (inputs, targets) for each record. Class labels become names. Raises UserError for a missing column."""
        for record in self.records():
            yield self.columns.make_pair(record.index, record.read, record.read_list)

    def tagged_sentences(self) -> Iterator[TaggedSentence]:
        """Raise UserError, because words with tags are read from files only."""
        raise UserError(f"{self.name}: words with tags are read from files: sources only; export them as .jsonl")

    def records(self, names: Sequence[str] = ()) -> Iterator[Record]:
        """Yield each record. names: the columns that are read; all columns are there in any case."""
        del names
        rows, _, class_names = self.load()
        for start in range(0, len(rows), ROWS_PER_READ):
            indices = range(start, min(start + ROWS_PER_READ, len(rows)))
            for index, record in zip(indices, rows.__getitems__(list(indices)), strict=True):
                place = f"{self.name}, record {index}"
                row = {name: _to_python(value, class_names.get(name)) for name, value in record.items()}
                read, read_list = (functools.partial(each, row, place) for each in (_read_column, _read_list))
                yield Record(index, place, row, read, read_list)

    def fingerprint(self) -> dict[str, Any]:
        """Return facts that identify the contents: name, version, split and columns.

        For pydocs: also the versions of the packages that the docstrings are from.
        """
        return {**self.facts, "columns": self.columns.facts()}

    def num_bytes(self) -> int | None:
        """Estimate the bytes of UTF-8 in all fragments; None if unknown. Prepares the dataset if needed."""
        return self.load().num_bytes


def _read_column(row: dict[str, Any], place: str, name: str) -> str:
    return read_text(row, name, place)


def _read_list(row: dict[str, Any], place: str, name: str) -> list[str] | None:
    if not isinstance(row.get(name), list):
        return None
    if not row[name]:
        raise UserError(f"{place}: column {name!r} is an empty list; give it a text")
    return [read_text({name: item}, name, place) for item in row[name]]


def _to_python(value: Any, names: Sequence[str] | None) -> Any:
    """Return a NumPy scalar as a Python scalar, and a class label as its name. The unknown label -1 stays a number.

    Arrays become lists. So does each array in a dict.
    """
    if isinstance(value, Mapping):
        return {key: _to_python(item, None) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_to_python(item, names) for item in value]
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def tfds_source(name: str, columns: Columns, split: str) -> RecordSource:
    """Open a split of NAME[/CONFIG][:VERSION]. `split` may be a part of a split, such as train[:10%].

    Raises UserError for an unknown dataset. The first read raises UserError if the dataset cannot be prepared or lacks
    the split.
    """
    builder = _open_builder(name)
    full_name = builder.info.full_name
    load = functools.cache(functools.partial(_load, name, full_name, split))
    return RecordSource(f"tfds:{full_name}", {"tfds": full_name, "split": split}, load, columns)


def tfds_splits(name: str) -> tuple[str, ...]:
    """Return the names of the splits of NAME[/CONFIG][:VERSION]. Prepares the dataset if needed."""
    return tuple(_prepare(name).info.splits)


def pydocs_source(config: str, columns: Columns, split: str) -> RecordSource:
    """Open a split of a config of pydocs. Raises UserError for an unknown config or split."""
    from t5lite.pydocs import builder, corpus

    builder.check_config(config)
    if split not in corpus.SPLITS:
        raise UserError(f"pydocs/{config} has no split {split!r}; {nearest(split, corpus.SPLITS)}")

    def load() -> Records:
        rows = builder.prepare_pydocs(config)[split]
        return Records(rows, rows.dataset_info.splits[split].num_bytes, {})

    facts = {**corpus.corpus_facts(), "config": config, "split": split}
    return RecordSource(f"pydocs/{config}", facts, functools.cache(load), columns)


def _open_builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise UserError(f"tfds:{name} is not of the form tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION")
    for folder in FOLDERS_OF_TEXT:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{folder}")
    try:
        # TFDS prints its progress, but stdout is for results.
        with contextlib.redirect_stdout(sys.stderr), refuse_silent_hosts():
            return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # community builders need the network and TensorFlow
        dataset = re.split("[/:]", name)[0]
        if dataset in known:
            reason = "no such config or version of the dataset is known or prepared; check the name"
        else:
            near = difflib.get_close_matches(dataset, known, n=1)  # a list of all names is too long to help
            hint = f"did you mean {near[0]!r}?" if near else "see tensorflow.org/datasets/catalog"
            reason = f"TFDS has no such dataset; {hint}"
        raise UserError(f"tfds:{name}: {reason}") from error
    except ImportError as error:
        raise UserError(
            f"tfds:{name} cannot be opened: {_shorten(error)}, which TFDS needs for this dataset; install it, or give "
            "the dataset's files as files:GLOB"
        ) from error
    except Exception as error:  # a dataset's builder may raise anything
        raise UserError(f"tfds:{name} cannot be opened: {_shorten(error)}; check its config and version") from error


def _prepare(name: str) -> Any:
    """Return the builder of a dataset. Download the dataset and prepare it as array_record if needed.

    Raises UserError if the dataset cannot be downloaded or prepared.
    """
    import tensorflow_datasets as tfds

    from t5lite.pydocs.builder import was_overtaken

    builder = _open_builder(name)
    full_name = builder.info.full_name
    # The prepared copies in Google's storage are tfrecord files, and only TensorFlow reads them.
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr), refuse_silent_hosts():
            builder.download_and_prepare(file_format="array_record", download_config=download)
            return builder
    except ImportError as error:
        raise UserError(
            f"tfds:{full_name} cannot be prepared here: {_shorten(error)}; prepare it with file_format='array_record' "
            "on a machine where the module is installed, and point TFDS_DATA_DIR at the folder"
        ) from error
    except Exception as error:  # from the network, the disk or the builder's own code
        if was_overtaken(error):
            return _open_builder(name)
        raise UserError(
            f"tfds:{full_name} cannot be prepared under {builder.data_dir}: {_shorten(error)}; check the network and "
            "the disk, or point TFDS_DATA_DIR at a folder where it is prepared"
        ) from error


def _load(name: str, full_name: str, split: str) -> Records:
    import tensorflow_datasets as tfds

    builder = _prepare(name)
    splits = builder.info.splits
    if split.partition("[")[0] not in splits:
        raise UserError(f"tfds:{full_name} has no split {split!r}; {nearest(split, splits)}")
    try:
        rows = builder.as_data_source(split)
    except Exception as error:
        raise UserError(
            f"tfds:{full_name}, split {split!r} cannot be read as array_record: {_shorten(error)}; check the split, or "
            "prepare the dataset with file_format='array_record' in another TFDS_DATA_DIR"
        ) from error
    features = builder.info.features
    labels = {}
    for name, feature in features.items() if hasattr(features, "items") else ():
        label = getattr(feature, "feature", feature)  # of a list, the feature of its items
        if isinstance(label, tfds.features.ClassLabel) and label.names:
            labels[name] = label.names
    return Records(rows, splits[split].num_bytes, labels)


def _shorten(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters, or the error's type without one."""
    lines = str(error).strip().splitlines() or [""]
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", lines[0])[:200] or type(error).__name__
