"""Keep the names of special tokens in messages from becoming special tokens.

A template writes <|end|> to close a message. A user may write <|end|> as well, and must not close a message. In the
rendered text the two look the same. So two characters, guards, go into the message before it is rendered:

    message      a <|end|> b          |end|>
    guarded      a §<|end|> b         ¦|end|>

A name behind § is text. ¦ stands where a message is a part of a name, or begins or ends like one, so that it forms no
name with what the template writes beside it. Guards are Unicode's noncharacters, two that neither the messages nor the
template have. They are removed before the text is encoded. Messages without such names stay as they are.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from t5lite.system.errors import UserError

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Guards(NamedTuple):
    """The two characters: in front of a name, and at a border of a message."""

    name: str
    border: str

    def remove(self, text: str) -> str:
        """Return the text without guards."""
        return text.replace(self.name, "").replace(self.border, "")


class NameFinder:
    """Finds the names of special tokens in texts, and guards the names in messages."""

    def __init__(self, names: Iterable[str]):
        longest_first = sorted(names, key=len, reverse=True)
        self._any_name = re.compile("|".join(map(re.escape, longest_first)))
        self._begins = {name[:size] for name in longest_first for size in range(1, len(name))}
        self._ends = {name[-size:] for name in longest_first for size in range(1, len(name))}
        self._longest = max(map(len, longest_first)) - 1
        self._all_names = "\n".join(longest_first)

    def choose_guards(self, messages: Sequence[Mapping[str, str]], template: str) -> Guards:
        """Return guards that occur nowhere. Raises UserError for messages that use too many noncharacters."""
        used = template + "".join(message["content"] for message in messages)
        free = [guard for guard in NONCHARACTERS if guard not in used]
        if len(free) < 2:
            raise UserError("the messages hold too many noncharacters (U+FDD0 to U+FDEF); remove these characters")
        return Guards(*free[:2])

    def make_pattern(self, guards: Guards) -> re.Pattern:
        """Return the pattern of the names in a rendered text that the template wrote."""
        return re.compile(f"(?<!{guards.name})(?:{self._any_name.pattern})")

    def guard(self, content: str, guards: Guards) -> str:
        """Return the content of a message with guards."""
        begin = len(content) - len(content.lstrip())  # the template may strip white space
        end = len(content.rstrip())
        sizes = range(1, min(self._longest, end - begin) + 1)
        places = [(match.start(), guards.name) for match in self._find_overlapping(content)]
        is_inside = 0 < end - begin < self._longest and content[begin:end] in self._all_names
        if is_inside or any(content[begin : begin + size] in self._ends for size in sizes):
            places.insert(0, (begin, guards.border))
        if any(content[end - size : end] in self._begins for size in sizes):
            places.append((end, guards.border))
        cuts = [0, *(place for place, _ in places), len(content)]
        parts = [content[start:stop] for start, stop in itertools.pairwise(cuts)]
        return parts[0] + "".join(guard + part for (_, guard), part in zip(places, parts[1:], strict=True))

    def _find_overlapping(self, content: str) -> Iterator[re.Match]:
        match = self._any_name.search(content)
        while match is not None:
            yield match
            match = self._any_name.search(content, match.start() + 1)
