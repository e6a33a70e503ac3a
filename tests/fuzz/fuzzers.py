"""The fuzzers: what is drawn, how a case is run, and what must hold of what comes of it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from ml_collections import ConfigDict

from t5lite import compare, convert, generate, prepare, preview, train
from t5lite.checks import RANGES
from t5lite.config import base_config
from t5lite.objectives.catalogue import OBJECTIVES
from tests.fuzz import contents
from tests.fuzz.ground import Ground
from tests.fuzz.outcome import Outcome, run


class Fuzzer(NamedTuple):
    """cases: what is drawn. run: (case, ground, an empty folder) -> what came of it. tests: cases of a test."""

    cases: Callable[[Ground], st.SearchStrategy]
    run: Callable[[Any, Ground, Path], Outcome]
    tests: int


# Files of data


class DataCase(NamedTuple):
    """Files in a folder, what they are read as, and whether a tokenizer is trained on them."""

    objective: str
    architecture: str
    files: list[tuple[str, bytes]]
    trains_tokenizer: bool


def _data_cases(ground: Ground) -> st.SearchStrategy:
    def of(objective: str, architecture: str, suffixes: Any, rows: st.SearchStrategy) -> st.SearchStrategy:
        files = st.lists(contents.files(suffixes, rows), min_size=1, max_size=2)
        trains = st.sampled_from((False, False, False, True))
        return st.builds(DataCase, st.just(objective), st.just(architecture), files, trains)

    every = contents.SUFFIXES
    return st.one_of(
        of("span_corruption", "encoder_decoder", every, contents.text_rows),
        of("supervised", "encoder_decoder", every[1:], contents.text_rows),
        of("tagging", "encoder", (".jsonl", ".parquet", ".arrow"), contents.tagged_rows),
        of("chat", "decoder", (".jsonl",), contents.chat_rows),
    )


def _run_data(case: DataCase, ground: Ground, folder: Path) -> Outcome:
    for name, content in case.files:
        (folder / name).write_bytes(content)
    arguments = ["--config", f"{ground.config}:objective={case.objective},architecture={case.architecture}"]
    arguments += [f"--config.data.train.source=files:{folder}/*"]
    if case.objective == "chat":  # the tokenizer needs the marks of the template
        arguments += ["--config.tokenizer.specials=None"]
    if case.trains_tokenizer:
        arguments += ["--config.tokenizer.path=None"]
    return run(prepare.main, arguments)


# Flags


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """{dotted path: type} of the fields of a config."""
    found: dict[str, type] = {}
    for name, value in config.items():
        path = prefix + name
        found |= _fields(value, f"{path}.") if isinstance(value, ConfigDict) else {path: config.get_type(name)}
    return found


FIELDS = _fields(base_config())
# Of training and evaluation, and what the model is; the others' are read by `prepare` as well.
OF_TRAINING = tuple(
    field
    for field in FIELDS
    if field.startswith(("optimizer.", "schedule.", "loss.", "budget.", "eval.", "mesh.", "checkpoint."))
    or field in ("microbatches", "log_every_steps", "trainable", "seed", "name", "deterministic", "batch_size")
)
ODD_NUMBERS = ("", "nan", "inf", "-inf", "1e308", "1e-320", "-0.0", "1.5", "abc", "True", "0x10", "１", "1_000", "None",
               "1" + "0" * 30, "9" * 5000, *map(str, (-1, 0, 1, 2, 3, 7, 31, 2**31 - 1, 2**31, 2**63)))  # fmt: skip
KNOWN = ("encoder", "decoder", "causal_lm", "mlm", "ul2", "bart", "prefix_lm", "mixture", "supervised", "tagging",
         "lion", "muon", "adafactor", "cosine", "linear", "warmup_stable_decay", "rotary", "swiglu", "relu", "full",
         "bfloat16", "mapped", "exact", "bernoulli", "bag_of_words")  # fmt: skip
TABLES = ("()", "(1,2)", "((1,2),)", "(('(',1.0),)", "(('.*',1.0),)", "(('.*',True),)", "(('.*','a'),)", "('a',)", "[]",
          "('[MASK]','[MASK]')", "('',)", "(True,)", "('<extra_id_0>',)", "(" * 100, "(" * 5000 + ")" * 5000, "None",
          "{}", "(float('nan'),)", "((1e999,),)", "'a'")  # fmt: skip


def _values(field: str, ground: Ground) -> st.SearchStrategy[str]:
    """What a command line may hold for a field, right ones among them; an argument holds no NUL or half a surrogate."""
    words = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)
    words |= st.sampled_from((*KNOWN, "@x", "a/b", "\n", "..", "/", str(ground.folder), "a" * 5000, *ground.programs))
    if FIELDS[field] is tuple:
        return st.sampled_from((*TABLES, *ground.programs)) | words
    if field not in RANGES:
        return st.sampled_from(("true", "false")) | words if FIELDS[field] is bool else words
    least, most = RANGES[field]
    right = st.floats(least, min(most, 2.0)) if FIELDS[field] is float else st.integers(least, min(most, 64))
    odd = st.sampled_from(ODD_NUMBERS) | st.integers().map(str) | st.floats().map(str) | words
    return right.map(str) | odd


def _flags(ground: Ground, fields: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    flag = st.sampled_from(fields).flatmap(
        lambda field: _values(field, ground).map(lambda value: f"--config.{field}={value}")
    )
    return st.lists(flag, min_size=1, max_size=2)


def _flag_cases(ground: Ground) -> st.SearchStrategy:
    return _flags(ground, tuple(FIELDS))


def _run_flags(case: list[str], ground: Ground, folder: Path) -> Outcome:
    return run(prepare.main, ["--config", ground.config, *case])


LARGEST = 10**4  # of a number that a case may have: a large model is no mistake, but takes time and memory


def _bounded(flags: list[str]) -> bool:
    """Whether a run with these flags is small, if it runs at all."""
    for flag in flags:
        field, _, value = flag.removeprefix("--config.").partition("=")
        try:
            number = float(value)
        except ValueError:
            continue
        least, most = RANGES.get(field, (0, 0))
        if field.startswith(("budget.", "batch_size", "eval.", "microbatches")) and 8 < number <= most:
            return False
        if least <= number <= most and number > LARGEST and field != "seed":
            return False
    return True


def _training_cases(ground: Ground) -> st.SearchStrategy:
    return _flags(ground, OF_TRAINING).filter(_bounded)


def _run_training(case: list[str], ground: Ground, folder: Path) -> Outcome:
    config = f"{ground.config}:objective=causal_lm,architecture=decoder"
    return run(train.main, ["--config", config, "--workdir", folder / "run", *case], seconds=300)


def _preview_cases(ground: Ground) -> st.SearchStrategy:
    """Any objective on any architecture that it knows, with settings of it changed."""
    known = [(name, architecture) for name, kind in OBJECTIVES.items() for architecture in kind.architectures]
    fields = tuple(field for field in FIELDS if field.startswith("objective.") and field != "objective.name")
    return st.tuples(st.sampled_from(known), _flags(ground, fields).filter(_bounded))


def _run_preview(case: tuple[tuple[str, str], list[str]], ground: Ground, folder: Path) -> Outcome:
    (objective, architecture), flags = case
    config = f"{ground.config}:objective={objective},architecture={architecture}"
    fields = ["--config.tokenizer.path=None", "--config.tokenizer.specials=None"]  # those that the objective needs
    return run(preview.main, ["--config", config, "--n", "1", *fields, *flags], seconds=300)


# A run's answers

ANSWER_FLAGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def _answer_cases(ground: Ground) -> st.SearchStrategy:
    """A text to go on with, which as an argument may hold bytes that are no UTF-8, and flags of sampling."""
    texts = st.binary(max_size=100).filter(lambda text: b"\0" not in text).map(os.fsdecode)
    texts |= contents.texts.filter(lambda text: "\0" not in text and len(text) < 1000)
    few = st.sampled_from(("0", "1", "3", "0.5"))
    values = few | st.sampled_from([value for value in ODD_NUMBERS if value not in ("31", "1000")])
    flags = st.tuples(st.sampled_from(ANSWER_FLAGS), values).map(lambda flag: f"--{flag[0]}={flag[1]}")
    return st.tuples(texts, st.lists(flags, max_size=2))


def _run_answer(case: tuple[str, list[str]], ground: Ground, folder: Path) -> Outcome:
    text, flags = case
    answers = ["--checkpoint", ground.complete_run, f"--input={text}", "--max_new_tokens=2"]
    return run(generate.main, [*answers, *flags], seconds=300)


# Workdirs and caches

WORKDIR_FILES = ("config.json", "provenance.json", "result.json", "metrics.jsonl", "tokenizer/vocabulary.json",
                 "tokenizer/pieces.model")  # fmt: skip


def _damage(path: Path, ground: Ground) -> st.SearchStrategy[bytes]:
    content = path.read_bytes()
    return contents.damaged_json(content) | contents.damaged(content) | st.just(ground.pickled)


def _workdir_cases(ground: Ground) -> st.SearchStrategy:
    return st.sampled_from(WORKDIR_FILES).flatmap(
        lambda name: st.tuples(st.just(name), _damage(ground.complete_run / name, ground))
    )


def _run_workdir(case: tuple[str, bytes], ground: Ground, folder: Path) -> Outcome:
    """A run that goes on, which a complete one does at once, and a report over it."""
    name, content = case
    shutil.copytree(ground.complete_run, folder / "run")
    (folder / "run" / name).write_bytes(content)
    config = f"{ground.config}:objective=causal_lm,architecture=decoder"
    outcome = run(train.main, ["--config", config, "--workdir", folder / "run"], seconds=300)
    if outcome.kind == "failed":
        return outcome
    return run(compare.main, [folder / "run", "--out", folder / "report"])


def _released_cases(ground: Ground) -> st.SearchStrategy:
    files = sorted(path for path in ground.released.rglob("*") if path.is_file())
    return st.sampled_from(files).flatmap(lambda path: st.tuples(st.just(path), _damage(path, ground)))


def _run_released(case: tuple[Path, bytes], ground: Ground, folder: Path) -> Outcome:
    """Weights that are damaged become a run, or nothing at all."""
    path, content = case
    shutil.copytree(path.parent, folder / "weights")
    (folder / "weights" / path.name).write_bytes(content)
    outcome = run(convert.main, ["--from", f"hf:{folder / 'weights'}", "--to", folder / "run"])
    left = sorted(each.name for each in folder.iterdir() if each.name != "weights")
    if left != (["run"] if outcome.kind == "succeeded" else []):
        return Outcome("failed", f"{outcome.kind}, and left {left}")
    return outcome


def _cache_files(ground: Ground) -> list[Path]:
    parts = json.loads(ground.prepared)["parts"].values()
    folders = [ground.tokenizer, *{Path(part["folder"]) for part in parts}]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _cache_cases(ground: Ground) -> st.SearchStrategy:
    return st.sampled_from(_cache_files(ground)).flatmap(lambda path: st.tuples(st.just(path), _damage(path, ground)))


def _run_cache(case: tuple[Path, bytes], ground: Ground, folder: Path) -> Outcome:
    """What is damaged is refused, or was of no account: the answer is what it was."""
    path, content = case
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        outcome = run(prepare.main, ["--config", ground.config, "--json"])
    finally:
        path.write_bytes(before)
    if outcome.kind == "succeeded" and outcome.said != ground.prepared:
        return Outcome("failed", f"{path} was damaged and used: {outcome.said}")
    return outcome


FUZZERS = {
    "data": Fuzzer(_data_cases, _run_data, 150),
    "flags": Fuzzer(_flag_cases, _run_flags, 150),
    "objectives": Fuzzer(_preview_cases, _run_preview, 10),
    "training": Fuzzer(_training_cases, _run_training, 8),
    "answers": Fuzzer(_answer_cases, _run_answer, 8),
    "workdirs": Fuzzer(_workdir_cases, _run_workdir, 20),
    "released": Fuzzer(_released_cases, _run_released, 15),
    "caches": Fuzzer(_cache_cases, _run_cache, 60),
}
