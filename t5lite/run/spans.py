"""Read answers to questions from the outputs of a head for spans.

A question has a row for each window of its context (see data/questions.py). Each window gives its best span, with the
sum of the logits of its start and end as score, and the score of "no answer". The best span of all windows is the
answer, unless every window prefers "no answer" (Devlin et al. 2019, section 4.3, with threshold 0).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from t5lite.data.questions import encode_context
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer

MAX_SPAN = 30  # tokens of an answer, as in BERT's run_squad.py


class WindowAnswer(NamedTuple):
    """The best span of a window: its first and last token in the context, its score, and the score of "no answer"."""

    first: int
    last: int
    score: float
    no_answer: float


class SpanAnswer(NamedTuple):
    """The answer to a question: its text and its first character in the context; "" and None if there is no answer.

    margin: the score of the best span minus the score of "no answer".
    """

    text: str
    start: int | None
    margin: float


def read_window(logits_Lx2: np.ndarray, window: Sequence[int], front: int) -> WindowAnswer:
    """Return the best span of a window.

    Args:
        logits_Lx2: the head's outputs for the row.
        window: (tokens of the question, first and last + 1 token of the context), as in `QuestionWindows.windows`.
        front: the number of tokens before the question, such as [CLS].
    """
    asked, start, stop = (int(number) for number in window)
    begin = front + asked + 1
    starts, ends = np.asarray(logits_Lx2[begin : begin + stop - start], np.float64).T
    nowhere = 0 if front else asked
    no_answer = float(logits_Lx2[nowhere].sum())
    if not len(starts):
        return WindowAnswer(0, 0, -np.inf, no_answer)
    sums = starts[:, None] + ends[None]
    span_lengths = np.arange(len(ends))[None] - np.arange(len(starts))[:, None]
    sums[(span_lengths < 0) | (span_lengths >= MAX_SPAN)] = -np.inf
    first, last = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return WindowAnswer(start + int(first), start + int(last), float(sums[first, last]), no_answer)


def join_windows(windows: Sequence[WindowAnswer], context: str, tokenizer: TextTokenizer) -> SpanAnswer:
    """Return the answer to a question from the answers of all windows of its context."""
    best = max(windows, key=lambda each: each.score)
    margin = best.score - min(each.no_answer for each in windows)
    if margin <= 0:
        return SpanAnswer("", None, margin)
    characters = encode_context(tokenizer, context)[1]
    start, stop = int(characters[best.first, 0]), int(characters[best.last, 1])
    text = context[start:stop]
    return SpanAnswer(text.strip(), start + len(text) - len(text.lstrip()), margin)
