"""Open a source of documents. One line of a config names the source.

    files:data/*.txt,more/**/*.jsonl.gz     files (see files.py for the formats)
    tfds:wikipedia/20230601.en:1.0.0        a TFDS dataset, its config and version optional (see tfds_source.py)
    pydocs/science                          docstrings of installed packages (see pydocs/builder.py)
    pydocs                                  short for pydocs/general

A source gives documents as fragments, `Fragment(text, ends_document)`, or supervised pairs, `(inputs, targets)` and
more references if there are any, or words with their tags, `TaggedSentence(words, tags, place)`. It also gives a
fingerprint of its contents, for the cache, and an estimate of its bytes of text, for a progress bar. `open_source`
downloads and prepares nothing. The first read downloads and prepares.
"""

import re

from t5lite.data.columns import Columns
from t5lite.data.delimited import AUTO
from t5lite.data.files import FileSource, Fragment
from t5lite.data.paths import find_files
from t5lite.data.tfds_source import RecordSource, pydocs_source, tfds_source, tfds_splits
from t5lite.system.errors import UserError

__all__ = ["Columns", "Fragment", "Source", "available_splits", "open_source"]

Source = FileSource | RecordSource


def open_source(spec: str, columns: Columns | None = None, split: str = "train", quoting: str = AUTO) -> Source:
    """Open the source that `spec` names. A files: source ignores `split`. Other sources ignore `quoting`.

    Raises UserError for a spec of another form, a pattern without files, and an unknown dataset, config or split.
    """
    kind, rest = _parse(spec)
    columns = columns or Columns()
    if kind == "files":
        return FileSource(find_files(rest), columns, quoting)
    if kind == "tfds":
        return tfds_source(rest, columns, split)
    return pydocs_source(rest, columns, split)


def available_splits(spec: str) -> tuple[str, ...]:
    """Return the names of a source's splits; ("train",) for files:. Prepares a tfds: dataset if needed."""
    kind, rest = _parse(spec)
    if kind == "tfds":
        return tfds_splits(rest)
    if kind == "pydocs":
        from t5lite.pydocs import builder, corpus

        builder.check_config(rest)
        return corpus.SPLITS
    return ("train",)


def _parse(spec: str) -> tuple[str, str]:
    """Return ("files", GLOB), ("tfds", NAME) or ("pydocs", CONFIG)."""
    if match := re.fullmatch(r"\s*(files|tfds):\s*(\S.*?)\s*|\s*(pydocs)(?:[/:](.*?))?\s*", spec, re.DOTALL):
        kind, rest, pydocs, config = match.groups()
        return (kind, rest) if kind else (pydocs, "general" if config is None else config)
    spec = spec.strip()
    hint = f"; did you mean files:{spec}?" if "*" in spec or "." in spec.rpartition("/")[2] else ""
    raise UserError(f"source {spec!r} is not files:GLOB, tfds:NAME[/CONFIG][:VERSION] or pydocs/CONFIG{hint}")
