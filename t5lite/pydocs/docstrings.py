"""Extract docstrings from Python source by parsing: nothing is imported and nothing is run.

This file is also the program of child processes (see `corpus.scan`). So it imports only the standard library, and
starts in a few milliseconds. A child reads a JSON list of files on stdin, `[[path, module], …]`, and prints a JSON list
of docstrings, `[[module, qualified name, text], …]`:

    [["/usr/lib/python3.12/bisect.py", "bisect"]]
    [["bisect", "", "Bisection algorithms."], ["bisect", "insort_right", "Insert item x in list a, …"]]
"""

import ast
import gc
import inspect
import json
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator

Docstring = tuple[str, str, str]  # module, qualified name ("" for the module itself), text

BLOCKS = {"body", "handlers", "orelse", "finalbody", "cases"}  # the fields of statements that hold statements
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def extract_docstrings(path: str, module: str) -> list[Docstring]:
    """Return the docstrings of a source file in the order of the file, without indentation, like `inspect.getdoc`.

    Modules, classes and functions have docstrings. numpy and scipy also attach docstrings to compiled objects by calls
    such as `add_newdoc("numpy._core.multiarray", "ndarray", ("sort", "…"))`. Such a docstring belongs to the module
    that the call names. A file that cannot be read, decoded or parsed gives no docstrings.
    """
    try:
        with tokenize.open(path) as file:  # decodes by BOM or coding line, like the interpreter
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # do not warn of invalid escapes in the source
            tree = ast.parse(source)
        docstrings = list(_walk(tree, module, ""))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [(where, name, _clean(text)) for where, name, text in docstrings]


def _clean(text: str) -> str:
    return _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", inspect.cleandoc(text)).strip()


def _walk(node: ast.AST, module: str, qualname: str) -> Iterator[Docstring]:
    """Yield the docstrings of `node` and of all definitions inside it, also inside if and try blocks."""
    can_have_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if can_have_docstring and (text := ast.get_docstring(node, clean=False)):
        yield module, qualname, text
    for child in _children(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, module, f"{qualname}.{child.name}" if qualname else child.name)
        elif isinstance(child, ast.Expr):
            yield from _find_added_docstrings(child.value, module)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _walk(child, module, qualname)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in the blocks of `node`, in the order of the source. `ast.iter_child_nodes` also yields all
    expressions, so it takes longer."""
    for field in node._fields:
        if field in BLOCKS:
            yield from getattr(node, field)


def _find_added_docstrings(call: ast.expr, module: str) -> Iterator[Docstring]:
    """Yield the docstrings in `add_newdoc(place, name, doc)`. doc is a text, (member, text) or a list of such pairs."""
    if not isinstance(call, ast.Call) or len(call.args) < 2:
        return
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if not function.startswith("add_newdoc"):
        return
    *heads, docs = call.args
    names = [head.value for head in heads if isinstance(head, ast.Constant) and isinstance(head.value, str)]
    if len(names) > 1:
        module, *names = names
    pairs = docs.elts if isinstance(docs, ast.List) else [docs]
    for pair in pairs:
        parts = pair.elts if isinstance(pair, ast.Tuple) else [pair]
        texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if texts and len(texts) == len(parts):
            yield module, ".".join(names + texts[:-1]), texts[-1]


def main() -> None:
    sys.setrecursionlimit(5000)
    gc.disable()  # it takes a third of the time, and syntax trees have no cycles
    files = json.load(sys.stdin)
    json.dump([docstring for path, module in files for docstring in extract_docstrings(path, module)], sys.stdout)


if __name__ == "__main__":
    main()
