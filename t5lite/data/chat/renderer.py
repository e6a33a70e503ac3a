"""Render conversations with a chat template, in a process that worker.py guards.

renderer = Renderer(template, "the chat template of tokens/", {"bos_token": "<s>"})
rendered = renderer.render(messages, prompts=[1], asks=False)
rendered.text[: rendered.starts[0]]       what the model reads before it writes message 1
"""

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.system.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
Message = Mapping[str, str]  # {"role": …, "content": …}


class Limits(NamedTuple):
    """What one rendering may take: seconds of CPU time, bytes of memory, characters of text."""

    seconds: int = 10
    memory: int = 1 << 30
    length: int = 1 << 24


LIMITS = Limits()


class Rendered(NamedTuple):
    """The text of a conversation, and the length of the text before each message of `prompts`."""

    text: str
    starts: list[int]


class Renderer:
    """A template, ready to render. Its process starts with the first rendering and ends with this object.

    Args:
        template: the text of the template.
        where: names the template, for errors.
        variables: the variables of the template besides the messages, such as bos_token.
    """

    def __init__(self, template: str, where: str, variables: Mapping[str, str], limits: Limits = LIMITS):
        self.template, self.where, self.variables, self.limits = template, where, dict(variables), limits
        self._process: subprocess.Popen | None = None

    def render(self, messages: Sequence[Message], prompts: Sequence[int], asks: bool) -> Rendered:
        """Render a conversation.

        Args:
            prompts: indices of messages, of the assistant.
            asks: whether the text ends with the generation prompt.

        Raises UserError, which begins with `where`, if the template fails, takes too long, makes too much, or if the
        text before a message of `prompts` is not the start of the whole text.
        """
        request = {"messages": list(messages), "variables": self.variables, "prompts": list(prompts), "asks": asks}
        reply = self._ask(request)
        if "broken" in reply:
            raise UserError(self._describe_break(messages, reply))
        return Rendered(reply["text"], reply["starts"])

    def _describe_break(self, messages: Sequence[Message], reply: Mapping[str, Any]) -> str:
        number, shared = reply["broken"], reply["shared"]
        return (
            f"{self.where} does not preserve prefixes: the text before message {number + 1} "
            f"({messages[number]['role']}) changes when the messages from there on follow. With them, the text differs "
            f"after {shared:,} characters, where it was {reply['alone']!r}; use a template that only appends"
        )

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
        return self._exchange(self._process, request)

    def _start(self) -> subprocess.Popen:
        # -P: modules beside worker.py must not be found in place of modules of the standard library. A session of its
        # own: Ctrl-C is for this process alone, which ends the other one.
        process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        weakref.finalize(self, _end, process)
        self._exchange(process, {"template": self.template, **self.limits._asdict()})
        return process

    def _exchange(self, process: subprocess.Popen, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and gives no answer
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            self._process = None
            raise UserError(f"{self.where} {self._describe_end(process)}; correct the template")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"{self.where} {reply['error']}")
        return reply

    def _describe_end(self, process: subprocess.Popen) -> str:
        """Return why the process ended without an answer."""
        code = process.wait()
        if code == -signal.SIGXCPU:
            return f"takes more than {self.limits.seconds} seconds"
        return f"ended its process (code {code}), because it takes too much memory or breaks the interpreter"


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
