"""Render chat templates, in a process of its own with a limit on time and memory. renderer.py starts the process.

A template is a small program from a stranger. Jinja's sandbox keeps it from files and from Python's internals, but not
from running for ever ({% for %} in {% for %}) or from filling the memory ({{ "x" * 10 ** 12 }}). One operation of the
interpreter can do so, and code in the same process could not stop it. Here the kernel does: the process is killed if a
rendering takes too many seconds of CPU time, and an allocation beyond the limit of memory fails.

Requests and answers are lines of JSON, on standard input and output:

    {"template": "…", "seconds": 10, "memory": 1073741824, "length": 16777216}
    {}                                                     or {"error": "is not valid Jinja (line 2): …"}
    {"messages": [{"role": "user", "content": "hi"}, …], "variables": {"bos_token": "<s>"}, "prompts": [1],
     "asks": false}
    {"text": "<s>[user]hi[assistant]hello", "starts": [21]}

`text` is the whole conversation; with "asks" it ends with the generation prompt. `starts` has the length of the text
before each message of "prompts": the messages before it, with the generation prompt. If that text is not the start of
`text`, the answer is {"broken": the message, "shared": the number of equal characters, "alone": what follows them}.

This file is run by its path and imports nothing of t5lite, so that the process starts quickly.
"""

import contextlib
import datetime
import json
import math
import resource
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

SHOWN = 40  # characters of a text that an answer quotes


class TooLong(Exception):
    """A rendered text has more characters than the limit."""


class GenerationTag(jinja2.ext.Extension):
    """The tag {% generation %}, with which some templates mark what the assistant says. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as in Jinja's own extensions

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class PlainNamespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):
        self, *others = args
        for name in dict(*others, **kwargs):
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, *others, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class MakeDict:
    """The function dict, without the other attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    # Jinja's own filter escapes the characters of HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> jinja2.Environment:
    """Return the environment of chat templates, as transformers has it."""
    extensions = [jinja2.ext.loopcontrols, GenerationTag]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["namespace"] = PlainNamespace
    environment.globals["dict"] = MakeDict()
    return environment


def _limit(limits: Mapping[str, Any]) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system limits memory
        size = limits["memory"] + _measure_memory()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _measure_memory() -> int:
    """Return the bytes of address space that this process has now, or 0 on a system without /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _allow_seconds(seconds: int) -> None:
    """Let the kernel kill this process after `seconds` more of CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    stop = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (stop, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _render(template: jinja2.Template, values: Mapping[str, Any], length: int) -> str:
    parts, size = [], 0
    for part in template.generate(**values):
        size += len(part)
        if size > length:
            raise TooLong
        parts.append(part)
    return "".join(parts)


def _answer(template: jinja2.Template, request: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    def render(messages: Sequence[Any], asks: bool) -> str:
        _allow_seconds(limits["seconds"])
        values = {"tools": None, "documents": None, **request["variables"]}
        return _render(template, {**values, "messages": messages, "add_generation_prompt": asks}, limits["length"])

    text, starts = render(request["messages"], request["asks"]), []
    for number in request["prompts"]:
        prompt = render(request["messages"][:number], True)
        if not text.startswith(prompt):
            differs = (place for place, pair in enumerate(zip(text, prompt, strict=False)) if pair[0] != pair[1])
            shared = next(differs, min(len(text), len(prompt)))
            return {"broken": number, "shared": shared, "alone": prompt[shared : shared + SHOWN]}
        starts.append(len(prompt))
    return {"text": text, "starts": starts}


def _describe(error: BaseException, length: int) -> str:
    """Return what a template did wrong, as the end of a sentence that begins with the template."""
    if isinstance(error, TooLong):
        return f"makes a text of more than {length:,} characters"
    if isinstance(error, MemoryError):
        return "needs too much memory"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"is not valid Jinja (line {error.lineno}): {error.message}"
    if type(error) is jinja2.TemplateError:
        return f"refuses the conversation: {error.message}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    where = f" in line {lines[-1]}" if lines else ""
    return f"fails{where}: {type(error).__name__}: {str(error)[:300]}"


def _reply(function: Callable[[], dict[str, Any]], length: int) -> bool:
    """Print what `function` returns, or its error. Return whether it succeeded."""
    try:
        reply = function()
    except Exception as error:  # a template may raise anything
        reply = {"error": _describe(error, length)}
    print(json.dumps(reply), flush=True)
    return "error" not in reply


def main() -> None:
    """Answer the requests on standard input until it ends."""
    limits = json.loads(sys.stdin.buffer.readline())
    _limit(limits)
    template: list[jinja2.Template] = []

    def compile_template() -> dict[str, Any]:
        _allow_seconds(limits["seconds"])
        template.append(make_environment().from_string(limits["template"]))
        return {}

    if _reply(compile_template, limits["length"]):
        for line in sys.stdin.buffer:
            _reply(lambda: _answer(template[0], json.loads(line), limits), limits["length"])  # noqa: B023 - used at once


if __name__ == "__main__":
    main()
