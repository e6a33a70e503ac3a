"""Read documents and pairs from TFDS datasets, and from `pydocs`, by index from array_record files.

t5lite never imports TensorFlow: datasets are prepared with file_format='array_record' and read as data sources. If a
dataset's own preparing code needs TensorFlow, prepare it on a machine where TensorFlow is installed.
"""

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from t5lite.data.files import Columns, Fragment, Tagged, fragments_of
from t5lite.data.readers import as_text
from t5lite.system.errors import UserError, nearest

ROWS_A_READ = 1024  # reading one record takes about 100 µs; in a read of many, each takes a tenth

_NAME = re.compile(r"[\w-]+(?:/[\w.+-]+)?(?::[\w.*]+)?")


class Records(NamedTuple):
    """A split's records by index, its bytes if known, and the class names of its labelled columns."""

    rows: Sequence[dict[str, Any]]
    num_bytes: int | None
    class_names: dict[str, Sequence[str]]


@dataclass(frozen=True)
class RecordSource:
    """One split of a prepared dataset. load: prepare the dataset if needed; called at the first read, not before."""

    name: str
    facts: dict[str, Any]
    load: Callable[[], Records]
    columns: Columns

    def fragments(self) -> Iterator[Fragment]:
        """Yield the text of the documents. Empty texts are left out. Raises UserError for a missing column."""
        for (text,) in self._values([self.columns.text]):
            if text:
                yield from fragments_of(text)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (inputs, targets) of each record, class labels by name. Raises UserError for a missing column."""
        yield from map(tuple, self._values([self.columns.inputs, self.columns.targets]))

    def tagged(self) -> Iterator[Tagged]:
        """Raise UserError: words and their tags are read from files only."""
        raise UserError(f"{self.name}: words and their tags are read from files: sources; export it as .jsonl")

    def _values(self, names: list[str]) -> Iterator[list[str]]:
        rows, _, class_names = self.load()
        for start in range(0, len(rows), ROWS_A_READ):
            indices = range(start, min(start + ROWS_A_READ, len(rows)))
            for index, record in zip(indices, rows.__getitems__(list(indices)), strict=True):
                place = f"{self.name}, record {index}"
                row = {name: _plain(value, class_names.get(name)) for name, value in record.items()}
                yield [as_text(row, name, place) for name in names]

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the contents: name, version, split and columns.

        For pydocs: the versions of its sources.
        """
        return {**self.facts, "columns": asdict(self.columns)}

    def num_bytes(self) -> int | None:
        """Estimate the bytes of UTF-8 in all fragments; None if unknown. Prepares the dataset if needed."""
        return self.load().num_bytes


def _plain(value: Any, names: Sequence[str] | None) -> Any:
    """Return a NumPy scalar as a Python scalar, and a class label as its name. An unknown label, -1, stays a number."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def tfds_source(name: str, columns: Columns, split: str) -> RecordSource:
    """Open a split of NAME[/CONFIG][:VERSION]. `split` may be a part, such as train[:10%].

    Raises UserError for an unknown dataset. The first read raises UserError if the dataset cannot be prepared or lacks
    the split.
    """
    builder = _builder(name)
    full_name = builder.info.full_name
    load = functools.cache(functools.partial(_load, name, full_name, split))
    return RecordSource(f"tfds:{full_name}", {"tfds": full_name, "split": split}, load, columns)


def tfds_splits(name: str) -> tuple[str, ...]:
    """Return the names of the splits of NAME[/CONFIG][:VERSION]. Prepares the dataset if needed."""
    return tuple(_prepared(name).info.splits)


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


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise UserError(f"tfds:{name} is not of the form tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress, but stdout is for results
            return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # community builders need the network and TensorFlow
        dataset = re.split("[/:]", name)[0]
        if dataset in known:
            reason = "no such config or version of it is known or prepared"
        else:
            near = difflib.get_close_matches(dataset, known, n=1)  # a list of a thousand names would not help
            hint = f"did you mean {near[0]!r}?" if near else "see tensorflow.org/datasets/catalog"
            reason = f"TFDS knows no such dataset; {hint}"
        raise UserError(f"tfds:{name}: {reason}") from error
    except Exception as error:  # a dataset's builder may raise anything
        raise UserError(f"tfds:{name} cannot be opened: {_short(error)}; check its config and version") from error


def _prepared(name: str) -> Any:
    """Return the builder of a dataset. Download the dataset and prepare it as array_record if needed.

    Raises UserError if that fails.
    """
    import tensorflow_datasets as tfds

    from t5lite.pydocs.builder import overtaken

    builder = _builder(name)
    full_name = builder.info.full_name
    # The prepared copies in Google's storage are tfrecord files, which only TensorFlow reads.
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress, but stdout is for results
            builder.download_and_prepare(file_format="array_record", download_config=download)
            return builder
    except ImportError as error:
        raise UserError(
            f"tfds:{full_name} cannot be prepared here: {_short(error)}; prepare it with file_format='array_record' "
            "where that is installed, and point TFDS_DATA_DIR at the folder"
        ) from error
    except Exception as error:  # from the network, the disk or the builder's own code
        if overtaken(error):
            return _builder(name)
        raise UserError(
            f"tfds:{full_name} cannot be prepared under {builder.data_dir}: {_short(error)}; check the network and the "
            "disk, or point TFDS_DATA_DIR at a folder where it is prepared"
        ) from error


def _load(name: str, full_name: str, split: str) -> Records:
    import tensorflow_datasets as tfds

    builder = _prepared(name)
    splits = builder.info.splits
    if split.partition("[")[0] not in splits:
        raise UserError(f"tfds:{full_name} has no split {split!r}; {nearest(split, splits)}")
    try:
        rows = builder.as_data_source(split)
    except Exception as error:
        raise UserError(
            f"tfds:{full_name}, split {split!r} cannot be read as array_record: {_short(error)}; check the split, or "
            "prepare the dataset with file_format='array_record' in another TFDS_DATA_DIR"
        ) from error
    features = builder.info.features
    labels = {
        name: feature.names
        for name, feature in (features.items() if hasattr(features, "items") else ())
        if isinstance(feature, tfds.features.ClassLabel) and feature.names
    }
    return Records(rows, splits[split].num_bytes, labels)


def _short(error: Exception) -> str:
    """Return the first line of an error's message, up to 200 characters; the error's type if it has no message."""
    lines = str(error).strip().splitlines() or [""]
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", lines[0])[:200] or type(error).__name__
