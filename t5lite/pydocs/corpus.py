"""The documents of `pydocs`: docstrings of the Python standard library and of the packages that t5lite installs.

The docstrings are collected once on a machine, by parsing: nothing is imported. Each gets a split, and duplicates are
removed. The cache folder keeps the documents under a fingerprint of the versions. `builder.py` makes TFDS configs from
the documents.

One line of documents.jsonl is one `Document`:

    {"id": "scipy.stats._qmc:Sobol", "module": "scipy.stats._qmc", "split": "train", "text": "Engine for generating …"}
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.pydocs import docstrings
from t5lite.pydocs.near_duplicates import select_without_leaks
from t5lite.system.cache import atomic_folder, cache_dir, fingerprint
from t5lite.system.errors import UserError
from t5lite.system.progress import progress

VERSION = "1.0.0"  # version of the rules for collecting; part of the fingerprint
SPLITS = ("train", "validation", "test")
MIN_CHARACTERS = 30
FILES_PER_PROCESS = 128

# {distribution: the folders and files under site-packages with its Python source}. First the distributions that
# requirements.txt names, then their dependencies. A distribution without these files adds nothing.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "absl-py": ("absl",),
    "array-record": ("array_record",),
    "flax": ("flax",),
    "grain": ("grain",),
    "importlib-resources": ("importlib_resources",),
    "jax": ("jax",),
    "matplotlib": ("matplotlib", "mpl_toolkits"),
    "ml-collections": ("ml_collections",),
    "numpy": ("numpy",),
    "optax": ("optax",),
    "orbax-checkpoint": ("orbax",),
    "pyarrow": ("pyarrow",),
    "rich": ("rich",),
    "scikit-learn": ("sklearn",),
    "scipy": ("scipy",),
    "sentencepiece": ("sentencepiece",),
    "tensorboardx": ("tensorboardX",),
    "tensorflow-datasets": ("tensorflow_datasets",),
    # dependencies of the distributions above
    "aiofiles": ("aiofiles",),
    "attrs": ("attr", "attrs"),
    "charset-normalizer": ("charset_normalizer",),
    "cloudpickle": ("cloudpickle",),
    "contourpy": ("contourpy",),
    "cycler": ("cycler",),
    "dm-tree": ("tree",),
    "docstring-parser": ("docstring_parser",),
    "einops": ("einops",),
    "etils": ("etils",),
    "fonttools": ("fontTools",),
    "fsspec": ("fsspec",),
    "humanize": ("humanize",),
    "idna": ("idna",),
    "immutabledict": ("immutabledict",),
    "jaxlib": ("jaxlib",),
    "joblib": ("joblib",),
    "kiwisolver": ("kiwisolver",),
    "markdown-it-py": ("markdown_it",),
    "mdurl": ("mdurl",),
    "ml-dtypes": ("ml_dtypes",),
    "msgpack": ("msgpack",),
    "narwhals": ("narwhals",),
    "opt-einsum": ("opt_einsum",),
    "packaging": ("packaging",),
    "pillow": ("PIL",),
    "portpicker": ("portpicker.py",),
    "prometheus-client": ("prometheus_client",),
    "promise": ("promise",),
    "protobuf": ("google/protobuf",),
    "psutil": ("psutil",),
    "pygments": ("pygments",),
    "pyparsing": ("pyparsing",),
    "python-dateutil": ("dateutil",),
    "pyyaml": ("yaml",),
    "requests": ("requests",),
    "simple-parsing": ("simple_parsing",),
    "simplejson": ("simplejson",),
    "sortedcontainers": ("sortedcontainers",),
    "tensorflow-metadata": ("tensorflow_metadata",),
    "tensorstore": ("tensorstore",),
    "termcolor": ("termcolor",),
    "threadpoolctl": ("threadpoolctl.py",),
    "toml": ("toml",),
    "tqdm": ("tqdm",),
    "treescope": ("treescope",),
    "typing-extensions": ("typing_extensions.py",),
    "urllib3": ("urllib3",),
    "uvloop": ("uvloop",),
    "wrapt": ("wrapt",),
    "zipp": ("zipp",),
    # These distributions became requirements after the corpus was defined. Their docstrings are left out, so that the
    # text of earlier runs does not change.
    "tokenizers": (),
    "safetensors": (),
    **dict.fromkeys(("sacrebleu", "rouge-score", "nltk", "colorama", "lxml", "portalocker", "regex", "tabulate"), ()),
    **dict.fromkeys(("defusedxml", "jinja2", "markupsafe"), ()),
}

# Tests, tools that most systems leave out of Python, and copies of other projects.
_SKIPPED_FOLDERS = {
    *("test", "tests", "_tests", "site-packages", "__pycache__", "_vendor", "_vendored", "vendored"),
    *("idlelib", "lib2to3", "turtledemo", "ensurepip"),
}


class Root(NamedTuple):
    """The dotted name and the path of a package's folder or a module's file."""

    module: str
    path: Path


class Document(NamedTuple):
    id: str  # "module:qualified name", unique
    module: str
    split: str
    text: str


def find_installed_roots() -> list[Root]:
    """Return the standard library's modules and the installed DISTRIBUTIONS. Nothing is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    roots = [Root(name, library / name) for name in sorted(sys.stdlib_module_names - _SKIPPED_FOLDERS)]
    roots = [root if root.path.is_dir() else Root(root.module, root.path.with_suffix(".py")) for root in roots]
    for name, places in DISTRIBUTIONS.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for place in places:
            module = place.removesuffix(".py").replace("/", ".")
            roots.append(Root(module, Path(str(distribution.locate_file(place)))))
    return [root for root in roots if root.path.exists()]


def corpus_facts(roots: Sequence[Root] | None = None) -> dict[str, Any]:
    """Return the facts that decide the corpus.

    roots: None: the installed packages, by their versions. Other roots: by size and time of their files.
    """
    facts: dict[str, Any] = {"pydocs": VERSION, "python": platform.python_version()}
    if roots is not None:
        files = [(path, module) for root in roots for path, module in _source_files(root)]
        stats = [Path(path).stat() for path, _ in files]
        return facts | {"files": [[m, s.st_size, s.st_mtime_ns] for (_, m), s in zip(files, stats, strict=True)]}
    packages = {}
    for name in (name for name, places in DISTRIBUTIONS.items() if places):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts | {"packages": packages}


def corpus_folder(roots: Sequence[Root] | None = None) -> Path:
    """Return the cache folder that holds the corpus, documents.jsonl. Collect the corpus if needed.

    roots: read these packages instead of the installed ones. Raises UserError if the cache folder cannot be written.
    """
    folder = cache_dir() / f"pydocs-{fingerprint(corpus_facts(roots))}"
    if not (folder / "documents.jsonl").is_file():
        documents = collect(find_installed_roots() if roots is None else roots)
        with atomic_folder(folder) as temporary, open(temporary / "documents.jsonl", "w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps(document._asdict()) + "\n")
    return folder


def read_corpus(folder: Path) -> list[Document]:
    """Return the documents of a `corpus_folder`, in order."""
    with open(folder / "documents.jsonl", encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def collect(roots: Sequence[Root]) -> list[Document]:
    """Scan `roots`, assign splits and remove duplicates.

    Modules that share the first three parts of the dotted name are in the same split. One of several exact duplicates
    is kept. A held-out document with a near duplicate in an earlier split is left out.
    """
    documents = []
    times_seen: dict[str, int] = {}
    for module, qualname, text in scan(roots):
        if len(text) < MIN_CHARACTERS:
            continue
        name = f"{module}:{qualname}"
        times_seen[name] = times_seen.get(name, 0) + 1  # such as a property and its setter
        unique = name if times_seen[name] == 1 else f"{name}#{times_seen[name]}"
        documents.append(Document(unique, module, choose_split(module), text))
    documents.sort()
    keep = select_without_leaks([d.text for d in documents], [d.split for d in documents], SPLITS)
    return [document for document, is_kept in zip(documents, keep, strict=True) if is_kept]


def choose_split(module: str) -> str:
    """Return the split of a module: about 90, 5 and 5 % by a hash of the first three parts of its dotted name."""
    # The salt is chosen so that both halves of pydocs have about these shares, and all large scipy subpackages have
    # held-out documents.
    package = ".".join(module.split(".")[:3])
    digest = hashlib.sha256(f"443:{package}".encode()).digest()
    place = int.from_bytes(digest[:4], "big") / 2**32
    return "train" if place < 0.9 else "validation" if place < 0.95 else "test"


def scan(roots: Sequence[Root]) -> list[docstrings.Docstring]:
    """Return all docstrings under `roots`, in the order of files. Child processes that do not import t5lite read them.

    The children are plain subprocesses. A fork is unsafe once JAX runs. The spawn of multiprocessing would import the
    caller's main module, and so JAX, in every child.
    """
    files = sorted({file for root in roots for file in _source_files(root)}, key=lambda file: (file[1], file[0]))
    chunks = [files[start : start + FILES_PER_PROCESS] for start in range(0, len(files), FILES_PER_PROCESS)]
    all_docstrings: list[docstrings.Docstring] = []
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        with progress("pydocs: reading docstrings", total=max(len(files), 1)) as advance:
            for chunk, result in zip(chunks, pool.map(_extract_in_child, chunks), strict=True):
                all_docstrings += result
                advance(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
    return all_docstrings


def _extract_in_child(files: list[tuple[str, str]]) -> list[docstrings.Docstring]:
    command = [sys.executable, "-I", "-S", docstrings.__file__]
    try:
        child = subprocess.run(command, input=json.dumps(files).encode(), capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"cannot start {sys.executable} to read docstrings: {error.strerror}") from error
    if child.returncode:
        last_line = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"reading docstrings from {files[0][0]} on failed ({child.returncode}): {last_line}")
    return [tuple(item) for item in json.loads(child.stdout)]


def _source_files(root: Root) -> Iterator[tuple[str, str]]:
    """Yield (path, dotted module name) of each source file of `root`. Tests are left out."""
    if root.path.is_file():
        yield str(root.path), root.module
        return
    for folder, folders, names in os.walk(root.path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        package = ".".join([root.module, *Path(folder).relative_to(root.path).parts])
        for name in sorted(names):
            stem = name.removesuffix(".py")
            if stem == name or stem.startswith("test_") or stem.endswith("_test") or stem == "conftest":
                continue
            yield os.path.join(folder, name), package if stem == "__init__" else f"{package}.{stem}"
