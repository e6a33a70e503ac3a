'''Two labelled tasks made from docstrings, so that fine-tuning can be tried without a download.

summary: the rest of a docstring -> its first sentence.

    """linspace(start, stop)

    Return evenly spaced numbers over an interval. The endpoint can be left out.

    Parameters …"""
    -> ("linspace(start, stop)\\n\\nThe endpoint can be left out.\\n\\nParameters …",
        "Return evenly spaced numbers over an interval.")

topic: a docstring of scipy, without the names of subpackages -> the subpackage of the docstring.

    ("scipy.stats._qmc", "Sobol engine, see `scipy.stats.qmc.Halton`") -> ("Sobol engine, see `qmc.Halton`", "stats")
'''

import re
from collections import Counter
from collections.abc import Sequence

from t5lite.pydocs.corpus import Document
from t5lite.pydocs.near_duplicates import normalise_text

MIN_SUMMARY, MAX_SUMMARY, MIN_REST = 15, 200, 100  # characters
MIN_TOPIC_CHARACTERS, MIN_TOPIC_DOCUMENTS = 60, 100

# A signature as in the first lines of numpy's docstrings: "zeros(shape, dtype=float)", "f(x) -> y".
_SIGNATURE = re.compile(r"[\w.]+ *\([^)]*\)(?: *->.*)?(?=\n|$)")
# Everything up to a full stop that ends a sentence. After the full stop a capital or a quote follows, or the text ends.
# The full stop of an abbreviation does not count.
_FIRST_SENTENCE = re.compile(
    r"""(?s).+?(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)(?<!\bal)(?<!\b[A-Z])\.(?=\s+[A-Z`'"*(]|\s*$)"""
)
_NOT_PROSE = re.compile(r">>>|::|--|==|~~|\*\*\*|[|{}<]|:$|^[^\w`'\"]")


def summary_pair(text: str) -> tuple[str, str] | None:
    """Return (the rest of the docstring, its first sentence), or None if one of them is not suitable.

    The sentence ends with a full stop or is a paragraph of its own. It has 15 to 200 characters and at least three
    words. At least 75 % of the sentence is letters and spaces, and no part looks like code or markup. The rest has at
    least 100 characters and does not repeat the sentence.
    """
    head, body = "", text
    while signature := _SIGNATURE.match(body):
        head, body = f"{head}{signature[0]}\n", body[signature.end() :].lstrip()
    paragraph, _, rest = body.partition("\n\n")
    sentence = _FIRST_SENTENCE.match(paragraph)
    summary = sentence[0] if sentence else paragraph
    remainder = paragraph[len(summary) :].strip()
    summary = " ".join(summary.split())
    if not _reads_as_sentence(summary):
        return None
    rest = "\n\n".join(part for part in (head.strip(), remainder, rest.strip("\n")) if part)
    if len(rest) < MIN_REST or normalise_text(summary).rstrip(".") in normalise_text(rest):
        return None
    return rest, summary


def _reads_as_sentence(text: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return (
        MIN_SUMMARY <= len(text) <= MAX_SUMMARY
        and len(text.split()) >= 3
        and letters >= 0.75 * len(text)
        and not _NOT_PROSE.search(text)
    )


def topic_pairs(documents: Sequence[Document]) -> list[tuple[Document, str, str]]:
    """Return (document, its text without the names of topics, its topic) for scipy's documents.

    The topics are public subpackages with at least 100 documents. Documents with fewer than 60 characters after the
    removal are left out.
    """
    candidates = [(document, _find_subpackage(document.module)) for document in documents]
    names = sorted({topic for _, topic in candidates if topic})
    if not names:
        return []
    name_pattern = _make_name_pattern(names)
    pairs = [(d, _remove_names(d.text, name_pattern), topic) for d, topic in candidates if topic]
    pairs = [pair for pair in pairs if len(pair[1]) >= MIN_TOPIC_CHARACTERS]
    counts = Counter(topic for _, _, topic in pairs)
    return [pair for pair in pairs if counts[pair[2]] >= MIN_TOPIC_DOCUMENTS]


def _find_subpackage(module: str) -> str | None:
    """Return "stats" for "scipy.stats._qmc"; None outside scipy's public subpackages."""
    first, *rest = module.split(".")
    return rest[0] if first == "scipy" and rest and not rest[0].startswith("_") else None


def _make_name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern for the names, in upper or lower case.

    The pattern matches a name as a word, or as a part of a dotted name (with the dot) or of a name with underscores.
    """
    words = "|".join(map(re.escape, ["scipy", *names]))
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])(?:\.(?=\w))?", re.IGNORECASE)


_IMPORT_LINE = re.compile(r"^[ \t]*(?:>>> |\.\.\. )?[ \t]*(?:import|from[ \t]+\S+[ \t]+import)[ \t].*\n?", re.MULTILINE)


def _remove_names(text: str, name_pattern: re.Pattern[str]) -> str:
    return name_pattern.sub("", _IMPORT_LINE.sub("", text)).strip()
