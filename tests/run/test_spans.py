"""Spans are read as BERT reads them: the best allowed span of all windows, or no answer."""

import numpy as np
import pytest

from t5lite.data.tokenizers.training import train_tokenizer
from t5lite.run.spans import MAX_SPAN, WindowAnswer, join_windows, read_window


@pytest.mark.parametrize("front", [0, 1])
def test_the_best_span_is_that_of_a_search_over_all(front):
    rng = np.random.default_rng(front)
    for _ in range(20):
        asked, start, length = int(rng.integers(1, 6)), int(rng.integers(9)), int(rng.integers(1, 50))
        logits = rng.normal(size=(front + asked + 1 + length + 1 + 5, 2))
        found = read_window(logits, (asked, start, start + length), front)
        begin = front + asked + 1
        spans = [
            (logits[begin + i, 0] + logits[begin + j, 1], start + i, start + j)
            for i in range(length)
            for j in range(i, min(length, i + MAX_SPAN))
        ]
        assert (found.score, found.first, found.last) == pytest.approx(max(spans))
        assert found.no_answer == pytest.approx(logits[0 if front else asked].sum())


def test_the_best_window_answers_unless_all_prefer_no_answer():
    context = "the white whale swam"
    tokenizer = train_tokenizer([context] * 30, 270, 0)
    windows = [WindowAnswer(0, 0, 1.0, 9.0), WindowAnswer(0, len(tokenizer.encode(context)) - 1, 3.0, 2.5)]
    answer = join_windows(windows, context, tokenizer)
    assert (answer.text, answer.start, answer.margin) == (context, 0, 0.5)
    refused = join_windows([each._replace(no_answer=3.5) for each in windows], context, tokenizer)
    assert (refused.text, refused.start) == ("", None) and refused.margin == pytest.approx(-0.5)
