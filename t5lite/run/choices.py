"""Choose among given answers: the likelihood of each under the model, the best answer first.

    {"input": "the sea is", "output": "wet", "score_by": "sum", "score": -0.7, "logprob": -0.7,
     "answers": [{"output": "wet", "tokens": […], "logprob": -0.7, "score": -0.7}, {"output": "dry", …}]}

The inputs are read once, also if there are many answers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t5lite.decoding.generate import pad_rows
from t5lite.decoding.score import count_units, score_candidates
from t5lite.model.transformer import Transformer
from t5lite.run.answering import PreparedRequest


def choose_answers(
    model: Transformer, params: Any, ready: Sequence[PreparedRequest], score_by: str, **scoring_arguments: Any
) -> list[dict[str, Any]]:
    """Return the answer to each request: the best of its choices, and all of them in "answers".

    Args:
        ready: requests that all have choices.
        score_by: a name in `score.SCORE_BY`.
        scoring_arguments: `Conventions.scoring_arguments`.
    """
    limit = model.config.max_positions
    inputs, lengths = pad_rows([each.ids for each in ready], max_length=limit)
    # Each request gets the same number of choices, a power of two, so that few programs are compiled.
    count = 1 << (max(len(each.choices) for each in ready) - 1).bit_length()
    tokens = [list(each.choices.values()) for each in ready]
    tokens += [tokens[0]] * (len(inputs) - len(ready))
    flat = [row for rows in tokens for row in [*rows, *[rows[0]] * (count - len(rows))]]
    candidates, candidate_lengths = pad_rows(flat, minimum=1, max_length=limit)
    shape = (len(inputs), count)
    scores = score_candidates(
        model, params, inputs, lengths, candidates.reshape(*shape, -1), candidate_lengths.reshape(shape),
        **scoring_arguments,
    )  # fmt: skip
    return [
        each.complete_answer(rank_choices(each.choices, row, score_by))
        for each, row in zip(ready, jax.device_get(scores), strict=False)
    ]


def rank_choices(choices: dict[str, Sequence[int]], logprobs: np.ndarray, score_by: str) -> dict[str, Any]:
    """Return the fields of an answer to a request with `choices`, {answer: its tokens}.

    logprobs: for each choice, the sum of the log-probabilities of its tokens. More values are ignored.
    """
    units = count_units(score_by, list(choices), list(map(len, choices.values())))
    answers = [
        {"output": text, "tokens": list(map(int, tokens)), "logprob": float(logprob), "score": float(logprob / unit)}
        for (text, tokens), logprob, unit in zip(choices.items(), logprobs[: len(choices)], units, strict=True)
    ]
    answers.sort(key=lambda answer: -answer["score"])  # choices with equal scores keep their order
    best = {name: answers[0][name] for name in ("output", "tokens", "logprob", "score")}
    return {**best, "score_by": score_by, "answers": answers}
