"""The conventions of a model: how it reads inputs, and how it writes answers. Evaluation, answers and exports use them.

    conventions = make_conventions(objective, vocabulary, tokenizer.begins_with_start, tokenizer.rules)
    generate(model, params, inputs, lengths, settings, **conventions.generation_arguments())
    score_targets(model, params, inputs, lengths, targets, target_lengths, **conventions.scoring_arguments())
    decode(conventions.text_tokens(answer))

Generation can produce all ids that targets contain in training: text, EOS, the id in front of the target, and sentinels
and specials if the objective's targets contain them. There is one exception: the unknown token is never generated,
because it stands for text that the vocabulary cannot express.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.objectives.objective import Objective
from t5lite.system.vocabulary import Rules, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Conventions:
    """A model's conventions; see the module's docstring.

    prefix_attention, start, prepend_start: how inputs are read; see `Generation`.
    allowed: bool [rows], the ids that may be generated.
    front: the ids in front of a target that is scored; one id, or none.
    rules: the rules that every answer follows, with EOS as the first of the stops.
    usual_settings: {field: value} of the settings that hold unless the user sets them.
    """

    prefix_attention: bool
    start: int
    prepend_start: bool
    allowed: np.ndarray
    front: tuple[int, ...]
    rules: Rules
    usual_settings: Mapping[str, int]

    def scoring_arguments(self) -> dict[str, Any]:
        """Return the arguments of `score_targets` and `score_candidates` that follow from the conventions."""
        return {
            "prefix_attention": self.prefix_attention,
            "start": self.start,
            "prepend_start": self.prepend_start,
        }

    def generation_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Generation` that follow from the conventions."""
        rules = self.rules
        answer_rules = {"eos": rules.stops, "first": rules.first, "last": rules.last, "never_first": rules.never_first}
        answer_rules |= {"usual_settings": self.usual_settings}
        return {**self.scoring_arguments(), "allowed": self.allowed, **answer_rules}

    def force_first(self, token: int) -> "Conventions":
        """Return the conventions if every answer begins with `token`, which is not part of the answer's text."""
        return dataclasses.replace(self, front=(token,), rules=dataclasses.replace(self.rules, first=token))

    def text_tokens(self, tokens: Sequence[int]) -> Sequence[int]:
        """Return the tokens of an answer without the id in front (`front`), and without the stop id at the end."""
        begin = 1 if len(tokens) and tuple(tokens[:1]) == self.front else 0
        end = len(tokens) - 1 if len(tokens) and tokens[-1] in self.rules.stops else len(tokens)
        return tokens[begin:end]


def make_conventions(
    objective: Objective, vocabulary: Vocabulary, begins_with_start: bool, rules: Rules | None
) -> Conventions:
    """Return the conventions of a model. rules: None if the tokenizer's files have no rules, as in older workdirs."""
    rules = Rules(first=objective.bos) if rules is None else rules
    if objective.architecture != "encoder_decoder":
        rules = dataclasses.replace(rules, first=None)
    front = objective.bos if rules.first is None else rules.first
    stops = tuple(dict.fromkeys([vocabulary.eos, *rules.stops]))
    allowed = objective.allowed_ids(vocabulary)
    allowed[list(stops)] = True
    if front is not None and rules.first is None:
        allowed[front] = True
    allowed[list(rules.never)] = False
    return Conventions(
        objective.prefix_attention,
        vocabulary.start,
        begins_with_start,
        allowed,
        () if front is None else (front,),
        dataclasses.replace(rules, stops=stops),
        rules.usual_settings(objective.architecture),
    )
