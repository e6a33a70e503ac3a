"""pydocs: docstrings without imports, splits without leaks, tasks without the answer in the question."""

import errno
import importlib.metadata
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from t5lite.data.sources import available_splits, open_source
from t5lite.pydocs import builder, corpus
from t5lite.pydocs.corpus import SPLITS, Document, Root, choose_split, collect
from t5lite.pydocs.docstrings import extract_docstrings
from t5lite.pydocs.near_duplicates import select_without_leaks
from t5lite.pydocs.tasks import summary_pair, topic_pairs
from t5lite.system.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"


def sentences(seed, count=8):
    """Prose that resembles no other seed's."""
    words = np.random.default_rng(seed).integers(0, 26, size=(count, 9, 6))
    lines = [" ".join("".join(chr(97 + letter) for letter in word) for word in line) for line in words]
    return "\n\n".join(line.capitalize() + "." for line in lines)


def write_package(folder, modules):
    """A package with one documented function a (module, text) of `modules`, as a Root."""
    for module, text in modules.items():
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'def function():\n    """{text}"""\n', encoding="utf-8")
    return Root(folder.name, folder)


def modules_in(split, count, package="package"):
    """Names of modules of `package` (without it) that the hash puts in `split`."""
    names = (f"m{index}" for index in range(100_000))
    return list(islice((name for name in names if choose_split(f"{package}.{name}") == split), count))


# Docstrings


def extracted(tmp_path, source):
    path = tmp_path / "source.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return extract_docstrings(str(path), "module")


def test_docstrings_of_modules_classes_and_functions_are_found_at_any_depth(tmp_path):
    source = '''"""Module."""
if True:
    class A:
        """Class.

        More.
            Indented.
        """
        try:
            async def f(self):
                "Method."
                def g(): "Inner."
        except ValueError:
            def h(self): "Handler."
def no_docstring(): return "Not a docstring."
'''
    assert extracted(tmp_path, source) == [
        ("module", "", "Module."),
        ("module", "A", "Class.\n\nMore.\n    Indented."),
        ("module", "A.f", "Method."),
        ("module", "A.f.g", "Inner."),
        ("module", "A.h", "Handler."),
    ]


def test_docstrings_that_numpy_and_scipy_add_to_compiled_objects_are_found(tmp_path):
    source = '''
add_newdoc("numpy.core", "zeros", """
    zeros(shape)
    """)
add_newdoc("numpy.core", "ndarray", ("sort", "Sorts."))
lib.add_newdoc("numpy.core", "dtype", [("kind", "Kind."), ("char", "Char.")])
add_newdoc("expit", "Expit.")
add_newdoc_for_scalar_type("byte", ["b"], "Byte.")
add_newdoc("computed", text)
other("numpy.core", "zeros", "Other.")
'''
    assert extracted(tmp_path, source) == [
        ("numpy.core", "zeros", "zeros(shape)"),
        ("numpy.core", "ndarray.sort", "Sorts."),
        ("numpy.core", "dtype.kind", "Kind."),
        ("numpy.core", "dtype.char", "Char."),
        ("module", "expit", "Expit."),
        ("module", "byte", "Byte."),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n",
        b'"""\xff\xfe"""',
        b"\n\n\n# \xff",
        b"\x00",
        "x = " + "(" * 500 + ")" * 500,
        "x = " + "-" * 100_000 + "1",
        "x = " + "1 + " * 50_000 + "1",
    ],
)
def test_a_file_that_cannot_be_parsed_has_no_docstrings(tmp_path, source):
    assert extracted(tmp_path, source) == []


def test_declared_encodings_and_escaped_surrogates_are_read(tmp_path):
    assert extracted(tmp_path, '# coding: latin-1\n"""é"""'.encode("latin-1")) == [("module", "", "é")]
    assert extracted(tmp_path, '"""a\\ud800b"""') == [("module", "", "a\N{REPLACEMENT CHARACTER}b")]


def test_the_source_is_not_run(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "m.py").write_text(f'"""{sentences(0)}"""\nopen({str(tmp_path / "ran")!r}, "w")\n')
    assert len(collect([Root("package", tmp_path / "package")])) == 1
    assert not (tmp_path / "ran").exists()


# The corpus


def test_modules_are_named_by_their_place_and_tests_are_left_out(tmp_path):
    folder = tmp_path / "package"
    for place in ("__init__", "sub.__init__", "sub.m", "tests.m", "test_m", "sub.m_test", "_vendor.m", "conftest"):
        write_package(folder, {place: sentences(sum(map(ord, place)))})
    found = collect([Root("package", folder), Root("single", folder / "sub" / "m.py")])
    # The single file repeats package/sub/m.py, so one of the two is kept.
    assert sorted(d.module for d in found if d.module != "single") == [
        "package",
        "package.sub",
        "package.sub.m",
    ]


def test_definitions_of_the_same_name_have_different_ids(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        f'if x:\n    def f():\n        """{sentences(1)}"""\nelse:\n    def f():\n        """{sentences(2)}"""\n'
    )
    assert [d.id for d in collect([Root("m", path)])] == ["m:f", "m:f#2"]


def test_short_docstrings_are_left_out(tmp_path):
    assert collect([write_package(tmp_path / "package", {"a": "Too short to learn from."})]) == []


def test_splits_go_by_the_first_three_parts_of_the_module_and_have_their_shares():
    assert {choose_split(f"a.b.c.m{index}.d") for index in range(100)} == {choose_split("a.b.c")}
    splits = [choose_split(f"a.b.m{index}") for index in range(4000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.015)


def test_planted_duplicates_do_not_straddle_splits(tmp_path):
    train, validation, test = modules_in("train", 3), modules_in("validation", 3), modules_in("test", 4)
    text = {seed: sentences(seed) for seed in range(8)}
    near = {seed: text[seed].replace(text[seed].split()[5], "changed") + " And one more." for seed in text}
    modules = {
        train[0]: text[0],
        train[1]: near[0],  # near duplicates on one side stay
        train[2]: text[1],
        validation[0]: text[1].upper().replace(" ", "  "),  # exact, but for case and spaces
        validation[1]: near[0],  # exact duplicate of a near duplicate
        validation[2]: text[2],
        test[0]: near[1],  # near to train
        test[1]: near[2],  # near to validation
        test[2]: text[3],
        test[3]: text[3] + "\n",  # exact, in the same split
    }
    found = {document.module.partition(".")[2] for document in collect([write_package(tmp_path / "package", modules)])}
    assert found == {*train, validation[2], test[2]} or found == {*train, validation[2], test[3]}


def test_a_shared_boilerplate_below_half_of_a_text_is_no_duplicate():
    texts = [f"{sentences(0, 4)} {sentences(seed, 4)}" for seed in (1, 2)]
    assert select_without_leaks(texts, ["train", "test"], SPLITS).tolist() == [True, True]
    assert select_without_leaks([texts[0], texts[0] + sentences(3, 2)], ["train", "test"], SPLITS).tolist() == [
        True,
        False,
    ]


def test_leaks_are_found_in_short_and_wordless_texts_and_none_in_no_texts():
    assert select_without_leaks([], [], SPLITS).tolist() == []
    texts = ["one two", "Two words", "one, two!", "+++", "---", "+++ "]
    splits = ["train", "train", "test", "train", "test", "test"]
    assert select_without_leaks(texts, splits, SPLITS).tolist() == [True, True, False, True, True, False]


def test_every_requirement_is_read():
    names = [re.match(r"[\w.-]+", line) for line in REQUIREMENTS.read_text().splitlines()]
    required = {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}
    assert len(required) > 10
    assert required <= set(corpus.DISTRIBUTIONS)


def test_installed_roots_exist_and_hold_the_standard_library_and_requirements():
    roots = {root.module: root.path for root in corpus.find_installed_roots()}
    assert {"asyncio", "bisect", "json", "numpy", "scipy", "jax", "google.protobuf", "typing_extensions"} <= set(roots)
    assert all(path.exists() for path in roots.values())
    assert not {"test", "idlelib", "lib2to3", "site-packages"} & {path.stem for path in roots.values()}


def test_the_fingerprint_names_versions(monkeypatch):
    facts = corpus.corpus_facts()
    assert facts["packages"]["numpy"] == np.__version__ and facts["python"].startswith("3.")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0")
    assert corpus.corpus_facts() != facts


# Tasks

REST = "Parameters\n----------\nvalue : float\n" + "    What to do with it, at some length. " * 3


@pytest.mark.parametrize(
    "head, inputs_start, summary",
    [
        ("Return the mean.\n\n", "Parameters", "Return the mean."),
        ("Return the mean\n\n", "Parameters", "Return the mean"),
        ("Return the mean\nof all values.\n\n", "Parameters", "Return the mean of all values."),
        ("Return the mean, e.g. Bob's. Then stop.\n\n", "Then stop.\n\nParameters", "Return the mean, e.g. Bob's."),
        ("mean(a, axis=None)\n\nReturn the mean.\n\n", "mean(a, axis=None)\n\nParameters", "Return the mean."),
    ],
)
def test_a_summary_is_the_first_sentence_and_the_inputs_the_rest(head, inputs_start, summary):
    inputs, targets = summary_pair(head + REST)
    assert targets == summary
    assert inputs.startswith(inputs_start)


@pytest.mark.parametrize(
    "text",
    [
        "Return the mean.",
        "Return the mean.\n\nAnd little else.",
        "Mean.\n\n" + REST,
        "Arithmetic mean\n\n" + REST,
        "Return " + "the very long " * 20 + "mean.\n\n" + REST,
        ">>> mean([1, 2]) gives one\n\n" + REST,
        "=====\nTitle of the module\n=====\n\n" + REST,
        "Return the mean of these:\n\n" + REST,
        "Return the mean.\n\n" + REST + "\nHere we return the\nmean of it.",
        "x = 1; y = 2; z = 3; w = 4.\n\n" + REST,
    ],
)
def test_an_unreasonable_half_makes_no_pair(text):
    assert summary_pair(text) is None


def scipy_documents(topics, count=100):
    for topic in topics:
        for index in range(count):
            text = f"{sentences(index)} See `scipy.{topic}.f{index}`, {topic.upper()} and np.{topic}.norm, _{topic}_py."
            yield Document(f"{topic}{index}", f"scipy.{topic}._m", SPLITS[index % 3], text)


def test_topics_are_large_public_subpackages_and_their_names_are_gone():
    documents = [*scipy_documents(["stats", "linalg"]), *scipy_documents(["small"], 99), *scipy_documents(["_lib"])]
    documents.append(Document("numpy", "numpy.linalg.x", "train", sentences(5)))
    documents.append(
        Document(
            "x", "scipy.stats", "train", f"{sentences(1)}\n>>> from scipy import stats\n>>> import numpy\n\n>>> f(1)"
        )
    )
    pairs = topic_pairs(documents)
    assert {topic for _, _, topic in pairs} == {"stats", "linalg"}
    assert len(pairs) == 201
    for document, inputs, _ in pairs:
        assert not re.search("scipy|stats|linalg|import", inputs, re.IGNORECASE), inputs
        assert document.id == "x" or ("`f" in inputs and "np.norm" in inputs)
    assert pairs[-1][1].endswith(">>> f(1)")


def test_topics_of_no_documents_are_none():
    assert topic_pairs([]) == []


def test_no_two_examples_of_a_task_have_the_same_inputs():
    texts = [f"{summary}\n\n{sentences(0)}" for summary in ("Return the very first.", "Return another one.")]
    documents = [
        Document(str(i), "a.b", split, t) for i, (split, t) in enumerate(zip(("test", "train"), texts, strict=True))
    ]
    assert [split for split, _ in builder.make_examples(documents, "summary")] == ["train"]


# Prepared


@pytest.fixture
def roots(tmp_path):
    packages = []
    for package in ("package", "scipy"):
        names = [name for split in SPLITS for name in modules_in(split, 5, package)]
        texts = {name: sentences(hash_of(package + name)) for name in names}
        packages.append(write_package(tmp_path / package, texts))
    return packages


def hash_of(name):
    return int.from_bytes(name.encode()[-8:], "big")


def read(source):
    return [{name: value.decode() for name, value in row.items()} for row in source.__getitems__(range(len(source)))]


def test_configs_share_one_scan_and_one_assignment_of_splits(roots, monkeypatch, capfd):
    general = builder.prepare_pydocs("general", roots)
    monkeypatch.setattr(corpus, "scan", lambda roots: pytest.fail("scanned twice"))
    science = builder.prepare_pydocs("science", roots)
    summary = builder.prepare_pydocs("summary", roots)
    assert list(general) == list(science) == list(summary) == list(SPLITS)
    for split in SPLITS:
        texts = {row["id"]: row["text"] for row in read(general[split])}
        assert len(texts) == 5 and all(name.startswith("package.") for name in texts)
        assert all(row["id"].startswith("scipy.") for row in read(science[split]))
        rows = read(summary[split])
        assert len(rows) == 5
        for row in rows:
            assert texts[row["id"]] == f"{row['targets']}\n\n{row['inputs']}"
    assert capfd.readouterr() == ("", ""), "TFDS stays quiet"


def test_another_set_of_sources_is_another_corpus(roots):
    before = corpus.corpus_folder(roots)
    assert corpus.corpus_folder(roots) == before
    write_package(roots[0].path, {"new": sentences(999)})
    after = corpus.corpus_folder(roots)
    assert after != before
    (roots[0].path / "new.py").write_text("changed = True")
    assert corpus.corpus_folder(roots) not in (before, after)
    assert len(corpus.read_corpus(after)) == len(corpus.read_corpus(before)) + 1


def test_a_failed_preparation_leaves_nothing_half_written(roots, monkeypatch, cache):
    def fail(*arguments):
        yield "train", {"id": "a", "text": "b"}
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builder, "make_examples", fail)
        with pytest.raises(UserError, match="No space left"):
            builder.prepare_pydocs("general", roots)
    assert not list(cache.glob("**/*.array_record*"))
    assert len(builder.prepare_pydocs("general", roots)["train"]) == 5


# etils, which renames for TFDS, raises the first kind, without a number; the system the second.
@pytest.mark.parametrize("error", [FileExistsError("already exists"), OSError(errno.ENOTEMPTY, "Not empty")])
def test_another_process_that_finishes_first_is_no_error(roots, monkeypatch, error):
    prepare = builder._prepare

    def overtaken(config, folder):
        monkeypatch.setattr(builder, "_prepare", prepare)
        prepare(config, folder)
        raise error

    monkeypatch.setattr(builder, "_prepare", overtaken)
    assert len(builder.prepare_pydocs("general", roots)["train"]) == 5


def test_an_unknown_config_is_refused_with_the_known_ones():
    for call in (
        builder.prepare_pydocs,
        lambda c: open_source(f"pydocs/{c}"),
        lambda c: available_splits(f"pydocs:{c}"),
    ):
        with pytest.raises(UserError, match=r"'sciense'; choose one of general, science, summary_general"):
            call("sciense")
    with pytest.raises(UserError, match="did you mean 'validation'"):
        open_source("pydocs", None, "valid")


def test_a_pydocs_source_prepares_nothing_before_the_first_read(cache):
    source = open_source("pydocs/summary_science", None, "test")
    facts = json.loads(json.dumps(source.fingerprint()))
    assert facts["config"] == "summary_science" and facts["split"] == "test" and facts["packages"]["scipy"]
    assert available_splits("pydocs") == SPLITS
    assert open_source("pydocs").name == open_source("pydocs:general").name == "pydocs/general"
    assert not cache.exists()


REAL = """
import sys
from t5lite.pydocs import corpus
keep = {"json", "email", "asyncio", "logging", "unittest", "argparse", "optax", "rich", "absl", "etils"}
corpus.find_installed_roots = lambda roots=corpus.find_installed_roots(): [r for r in roots if r.module in keep]
from t5lite.data.sources import open_source
for split in ("train", "validation", "test"):
    pairs = list(open_source("pydocs/summary", None, split).pairs())
    assert pairs and all(isinstance(half, str) and half for pair in pairs for half in pair)
    print(split, len(pairs))
print(*(name for name in ("tensorflow", "jax", "email.mime.text") if name in sys.modules))
"""


def test_real_summaries_are_read_without_tensorflow_or_jax():
    out = subprocess.run([sys.executable, "-c", REAL], capture_output=True, check=True, text=True).stdout
    *counts, imported = out.split("\n")[:-1]
    assert imported == ""
    assert sum(int(line.split()[1]) for line in counts) > 500


@pytest.mark.slow
def test_all_of_pydocs_is_as_large_as_promised():
    documents = corpus.read_corpus(corpus.corpus_folder())
    assert 20_000 < len(documents) < 60_000
    assert 10e6 < sum(len(document.text) for document in documents) < 30e6
    for science in (False, True):
        half = [d for d in documents if (d.module.partition(".")[0] in builder.SCIENCE) == science]
        for split in ("validation", "test"):
            assert 0.02 < sum(d.split == split for d in half) / len(half) < 0.09
    topics = {split: set() for split in SPLITS}
    for split, example in builder.make_examples(documents, "science_topic"):
        topics[split].add(example["targets"])
    assert len(topics["train"]) >= 8 and len(topics["validation"]) >= 6 and len(topics["test"]) >= 6
