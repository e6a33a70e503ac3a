"""`pydocs`: a TFDS dataset of docstrings. Every machine that can run t5lite has these docstrings.

    general            text: all docstrings except numpy's and scipy's
    science            text: numpy's and scipy's docstrings
    summary_general    the rest of a docstring of general -> its first sentence
    summary_science    the rest of a docstring of science -> its first sentence
    summary            another name of summary_general
    science_topic      a docstring of scipy -> its subpackage

Text configs have the columns {"text", "id"}, tasks have {"inputs", "targets", "id"}. The splits are train, validation
and test (about 90, 5 and 5 %). A module is in the same split in every config. The dataset is prepared in the cache
folder, in the array_record format, without TensorFlow.
"""

import contextlib
import errno
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from t5lite.pydocs.corpus import SPLITS, VERSION, Document, Root, corpus_folder, read_corpus
from t5lite.pydocs.near_duplicates import normalise_text
from t5lite.pydocs.tasks import summary_pair, topic_pairs
from t5lite.system.errors import UserError

SCIENCE = ("numpy", "scipy")
CONFIGS = {
    "general": "docstrings of the standard library and of the packages that t5lite installs, except numpy and scipy",
    "science": "docstrings of numpy and scipy",
    "summary_general": "the rest of a docstring of general -> its first sentence",
    "summary_science": "the rest of a docstring of science -> its first sentence",
    "summary": "the same as summary_general",
    "science_topic": "a docstring of scipy, without the names of subpackages -> its subpackage",
}

Example = dict[str, str]


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder. corpus: a folder made by `corpus_folder`; None: the folder of this installation."""

    name = "pydocs"
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012, TFDS reads the class attribute
        tfds.core.BuilderConfig(name=name, description=description) for name, description in CONFIGS.items()
    ]

    def __init__(self, *, corpus: Path | None = None, **keywords: Any):
        self._corpus = corpus
        super().__init__(**keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        columns = ("inputs", "targets", "id") if is_task(self.builder_config.name) else ("text", "id")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Docstrings of the Python standard library and of installed packages.",
            features=tfds.features.FeaturesDict({column: tfds.features.Text() for column in columns}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Example]]]:
        by_split: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for split, example in make_examples(read_corpus(self._corpus or corpus_folder()), self.builder_config.name):
            by_split[split].append(example)
        return {split: self._generate_examples(chosen) for split, chosen in by_split.items()}

    def _generate_examples(self, chosen: Sequence[Example]) -> Iterator[tuple[str, Example]]:
        for example in chosen:
            yield example["id"], example


def is_task(config: str) -> bool:
    """Return whether the config's examples are pairs."""
    return config not in ("general", "science")


def make_examples(documents: Sequence[Document], config: str) -> Iterator[tuple[str, Example]]:
    """Yield (split, example) of a config. For a task: one split after another, and no two examples with equal inputs.

    ("train", {"id": "numpy:zeros", "text": "zeros(shape, …"}) or ("test", {"id": …, "inputs": …, "targets": …})
    """
    if config == "science_topic":
        pairs = topic_pairs(documents)
    else:
        science = config.endswith("science")
        documents = [d for d in documents if (d.module.partition(".")[0] in SCIENCE) == science]
        if not is_task(config):
            for document in documents:
                yield document.split, {"id": document.id, "text": document.text}
            return
        pairs = [(d, *pair) for d in documents if (pair := summary_pair(d.text))]
    seen = set()
    for document, inputs, targets in sorted(pairs, key=lambda pair: SPLITS.index(pair[0].split)):
        # Inputs of different documents may be equal, for example boilerplate under two summaries.
        if (key := normalise_text(inputs)) not in seen:
            seen.add(key)
            yield document.split, {"id": document.id, "inputs": inputs, "targets": targets}


def prepare_pydocs(config: str = "general", roots: Sequence[Root] | None = None) -> dict[str, Sequence[Any]]:
    """Return the data source of each split of `config`. Prepare the dataset if needed.

    A data source gives examples by index, with texts as bytes. `source.__getitems__(indices)` reads many examples at
    once. roots: read these packages instead of the installed ones. Raises UserError for an unknown config, and for a
    full disk.
    """
    check_config(config)
    folder = corpus_folder(roots)
    try:
        try:
            return _prepare(config, folder)
        except OSError as error:
            if not was_overtaken(error):
                raise
            return _prepare(config, folder)  # finds the dataset that the other process prepared
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot prepare pydocs/{config} in {folder}: {reason}; free some space or set T5LITE_CACHE"
        ) from error


def _prepare(config: str, folder: Path) -> dict[str, Sequence[Any]]:
    with _silence_tfds():
        builder = Pydocs(config=config, data_dir=folder / "tfds", file_format="array_record", corpus=folder)
        download = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=download)
        return {split: builder.as_data_source(split) for split in SPLITS if split in builder.info.splits}


def was_overtaken(error: Exception) -> bool:
    """Return whether TFDS could not rename its folder because another process prepared the same dataset first."""
    return isinstance(error, FileExistsError) or getattr(error, "errno", None) == errno.ENOTEMPTY


def check_config(config: str) -> None:
    """Raise UserError for an unknown config."""
    if config not in CONFIGS:
        raise UserError(f"pydocs has no config {config!r}; choose one of {', '.join(CONFIGS)}")


@contextlib.contextmanager
def _silence_tfds() -> Iterator[None]:
    """Keep TFDS's progress bars, prints and log lines off the terminal."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
