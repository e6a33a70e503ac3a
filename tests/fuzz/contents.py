"""Contents of files, most of them almost right: text, JSON, CSV, Parquet, each whole, damaged or something else."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow
from hypothesis import strategies as st
from pyarrow import ipc, parquet

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".parquet", ".arrow")  # binary formats, which have no .gz
COLUMNS = ("text", "inputs", "targets")
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ufeff",
    "\u202eabc",
    "👩‍👩‍👧",
    "a\r\nb",
    "\x1b[31m",
    "▁",
    "<extra_id_0>",
    "[/red]",
    "é" * 3000,
    "x" * 20000,
)
NAMES = (
    "a",
    "a b",
    "a'b\"c",
    "a[1]",
    "new\nline",
    "ünï 😀",
    "esc\x1b[31m",
    "back\\slash",
    "-dash",
    "~",
    "%s{}",
    "a" * 200,
)

GOOD_TEXT = "the old man and the sea. " * 40
REPEATS = st.sampled_from((30, 30, 30, 1))  # fewer than 20 documents leave none to hold out

texts = st.just(GOOD_TEXT) | st.text(max_size=200) | st.just(GOOD_TEXT) | st.sampled_from(ODD_TEXTS)
lone_surrogates = st.text(st.characters(categories=("Cs",)), min_size=1, max_size=3)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    lone_surrogates,
    st.sampled_from((10**400, -(2**63), 1e308)),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
deep = st.builds(  # JSON
    lambda pair, depth: pair[0] * depth + "1" + pair[1] * depth,
    st.sampled_from((("[", "]"), ('{"text":', "}"), ('{"text":"a","x":[', "]}"))),
    st.sampled_from((10, 900, 1000, 100_000)),
)


text_rows = st.fixed_dictionaries({name: texts for name in COLUMNS})
tagged_rows = st.lists(st.tuples(texts, texts), min_size=1, max_size=8).map(
    lambda pairs: {"inputs": [word for word, _ in pairs], "targets": [tag for _, tag in pairs]}
)


messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(("user", "assistant", "system")) | texts,
            "content": texts | st.none() | st.lists(texts),
        }
    ),
    max_size=6,
)
sides = texts | messages
chat_rows = st.fixed_dictionaries({"messages": messages}) | st.fixed_dictionaries(
    {"prompt": sides, "completion": sides}
)


@st.composite
def rows(draw: st.DrawFn, right: st.SearchStrategy, faulty: bool) -> list[dict[str, Any]]:
    """Rows such as `right` draws; of faulty ones some have other columns, or anything in them."""
    wrong = st.dictionaries(st.sampled_from(COLUMNS) | texts, values, max_size=4)
    few = draw(st.lists(right | right | wrong if faulty else right, min_size=1, max_size=4))
    return few * draw(REPEATS)


@st.composite
def jsonl(draw: st.DrawFn, right: st.SearchStrategy, faulty: bool) -> bytes:
    """Lines of JSON; of faulty ones one may be none, and line ends any."""
    lines = [json.dumps(row) for row in draw(rows(right, faulty))]
    if faulty:
        lines.insert(draw(st.integers(0, 2)), draw(st.text(max_size=20) | deep | values.map(json.dumps)))
    end = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n") if faulty else ("\n", "\r\n")))
    return end.join(lines).encode("utf-8", "surrogatepass")


@st.composite
def delimited(draw: st.DrawFn, delimiter: str, faulty: bool) -> bytes:
    """CSV; of faulty ones the header, the number of fields and the quotes may be any."""
    file = io.StringIO()
    end = draw(st.sampled_from(("\n", "\r\n", "\r") if faulty else ("\n", "\r\n")))
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    header = draw(st.lists(texts | st.sampled_from(COLUMNS), max_size=4)) if faulty else COLUMNS
    lists = st.lists(texts, min_size=len(header), max_size=len(header))
    few = draw(st.lists(lists | st.lists(texts, max_size=4) if faulty else lists, min_size=1, max_size=4))
    writer.writerows([header, *few * draw(REPEATS)])
    tail = draw(st.sampled_from(('"', '"a', "\0", "\r", delimiter))) if faulty else ""
    return (file.getvalue() + tail).encode()


TYPES = (
    pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.int64(), pyarrow.float16(), pyarrow.float64(),
    pyarrow.bool_(), pyarrow.null(), pyarrow.list_(pyarrow.string()), pyarrow.timestamp("ns"), pyarrow.date32(),
    pyarrow.duration("s"), pyarrow.decimal128(38, 2), pyarrow.struct([("text", pyarrow.string())]),
    pyarrow.map_(pyarrow.string(), pyarrow.int8()), pyarrow.list_(pyarrow.list_(pyarrow.int8())), pyarrow.time64("us"),
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, right: st.SearchStrategy, faulty: bool, suffix: str) -> bytes:
    """A .parquet or .arrow file; of a faulty one columns are of any types, too many or too few."""
    if not faulty:
        table = pyarrow.Table.from_pylist(draw(rows(right, False)))
    else:
        count = draw(st.integers(0, 30))
        names = draw(st.just(COLUMNS) | st.lists(st.sampled_from((*COLUMNS, "other", "text.a")), max_size=5))
        table = pyarrow.Table.from_arrays([draw(_columns(count)) for _ in names], names)
    file = io.BytesIO()
    if suffix == ".arrow":
        with draw(st.sampled_from((ipc.new_stream, ipc.new_file)))(file, table.schema) as writer:
            writer.write_table(table, draw(st.integers(1, 30)))
        return file.getvalue()
    parquet.write_table(table, file, compression=draw(st.sampled_from(("snappy", "zstd", "none"))))
    return file.getvalue()


@st.composite
def _columns(draw: st.DrawFn, count: int) -> pyarrow.Array:
    kind = draw(st.sampled_from(TYPES) | st.just(pyarrow.string()))
    column = pyarrow.nulls(count, kind) if draw(st.booleans()) else pyarrow.array([_example(kind)] * count, kind)
    return column.dictionary_encode() if pyarrow.types.is_string(kind) and draw(st.booleans()) else column


def _example(kind: pyarrow.DataType) -> Any:
    if pyarrow.types.is_nested(kind):
        known = {pyarrow.list_(pyarrow.string()): ["a", "the sea"], pyarrow.list_(pyarrow.list_(pyarrow.int8())): [[1]]}
        return known.get(kind, [("k", 1)] if pyarrow.types.is_map(kind) else {"text": "a"})
    if pyarrow.types.is_binary(kind):
        return b"\xff\xfe"
    if pyarrow.types.is_temporal(kind) or pyarrow.types.is_integer(kind):
        return 2**30
    if pyarrow.types.is_boolean(kind):
        return True
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind):
        return 1.5 if pyarrow.types.is_floating(kind) else 3
    return None if pyarrow.types.is_null(kind) else "the old man and the sea. " * 20


def plain(faulty: bool) -> st.SearchStrategy[bytes]:
    """The content of a .txt file; a faulty one is any bytes."""
    return st.binary(max_size=300) if faulty else st.lists(texts, max_size=20).map("\n".join).map(str.encode)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, with bytes changed or put in, or something else in its place."""
    kind = draw(st.sampled_from(("cut", "flip", "insert", "repeat", "other")))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "cut":
        return content[:at]
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
    if kind == "repeat":
        return content[:at] * 2 + content[at:]
    return draw(st.binary(max_size=100) | deep.map(str.encode) | plain(False))


@st.composite
def files(draw: st.DrawFn, suffixes: Sequence[str], right: st.SearchStrategy) -> tuple[str, bytes]:
    """(name, content) of a file of one of the formats; half of them are faulty, or damaged, or of another format."""
    suffix, faulty = draw(st.sampled_from(suffixes)), draw(st.integers(0, 3)) == 0
    made = {
        ".txt": plain(faulty),
        ".jsonl": jsonl(right, faulty),
        ".csv": delimited(",", faulty),
        ".tsv": delimited("\t", faulty),
        **{packed: tables(right, faulty, packed) for packed in PACKED},
    }
    content = draw(made[suffix])
    if suffix not in PACKED:
        content = draw(st.sampled_from((b"", b"", b"\xef\xbb\xbf"))) + content
    if draw(st.integers(0, 5)) == 0:
        content = draw(damaged(content))
    if suffix not in PACKED and draw(st.integers(0, 3)) == 0:
        suffix, content = f"{suffix}.gz", gzip.compress(content)
        if draw(st.integers(0, 2)) == 0:
            content = draw(damaged(content))
    if draw(st.integers(0, 15)) == 0:
        suffix = draw(st.sampled_from(SUFFIXES))
    return draw(st.sampled_from(NAMES)) + suffix, content


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON with one of its values replaced, taken out or added; or damaged as any file is."""
    try:
        tree = json.loads(content)
    except ValueError:
        return draw(damaged(content))
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(content))
    at = tree
    while isinstance(at, dict | list) and at:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or draw(st.integers(0, 2)) == 0:
            break
        at = at[key]
    change = draw(st.sampled_from(("replace", "replace", "drop", "add")))
    if change == "drop" and at:
        del at[key]
    elif change == "add" and isinstance(at, dict):
        at[draw(texts)] = draw(values)
    elif at:
        at[key] = draw(values)
    return json.dumps(tree).encode()
