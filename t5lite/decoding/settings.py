"""Settings of generation: a frozen dataclass, which checks its values."""

import dataclasses
from collections.abc import Mapping

from t5lite.system.errors import UserError

EARLY_STOPPING = (False, True, "never")
# {field: (the value that turns its part of the program off, a value that stands for all others)}. These numbers are
# arguments of a compiled program, so a new temperature needs no new program.
NUMBERS = {"temperature": (0.0, 0.5), "top_p": (1.0, 0.5), "min_p": (0.0, 0.5), "repetition_penalty": (1.0, 0.5),
           "length_penalty": (1.0, 0.5), "min_new_tokens": (0, 1)}  # fmt: skip
# Fields that may be None: then the model decides, or 0.
LEFT_TO_MODEL = ("min_new_tokens", "no_repeat_ngram_size")
MAX_NGRAM = 2**10  # the program of a step grows with the size of the n-grams


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to choose tokens. Hashable. The constructor raises UserError for a bad value.

    max_new_tokens: the largest number of tokens in an answer. EOS can end an answer earlier.
    num_return: the number of answers to each row: the best beams, or samples.

    min_new_tokens: no id ends an answer before the answer has this many tokens. no_repeat_ngram_size: n; no n ids in a
    row occur twice among the ids that the decoder reads and generates (0: off). A decoder reads its prompt, an
    encoder-decoder only the start id. If that forbids every id, a step ignores it. Both fields follow transformers.
    None: the value in the files of released weights, else 0.

    Sampling: temperature 0 takes the likeliest token. Otherwise tokens are drawn from softmax(logits / temperature),
    but only from the ids that three fields select. top_k: the k likeliest ids (0: all). top_p: the smallest set of
    likeliest ids with this total probability (1: all). min_p: ids whose probability is at least min_p times the largest
    probability (0: all). Sources: Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).

    repetition_penalty: above 1, ids that the decoder has read or generated become less likely. Positive logits are
    divided by the penalty, negative ones are multiplied (Keskar et al. 2019, CTRL). Beams apply it to
    log-probabilities.

    Beams (num_beams > 1) follow Hugging Face's transformers. The score of a hypothesis is the sum of its
    log-probabilities / length ** length_penalty. The length includes EOS. early_stopping decides when a row ends. True:
    when it has num_beams hypotheses. False: when the best beam, at its present length, has no better score than the
    worst of the num_beams hypotheses. "never": when the best beam cannot get a better score at any length.
    """

    max_new_tokens: int = 64
    min_new_tokens: int | None = None
    no_repeat_ngram_size: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return: int = 1

    def __post_init__(self):
        whole = {"max_new_tokens": 1, "top_k": 0, "num_beams": 1, "num_return": 1, **dict.fromkeys(LEFT_TO_MODEL, 0)}
        for field, minimum in whole.items():
            value = getattr(self, field)
            if value is None and field in LEFT_TO_MODEL:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise UserError(f"{field}={value!r} must be a whole number, at least {minimum}")
        for field, holds, rule in (
            ("no_repeat_ngram_size", (self.no_repeat_ngram_size or 0) <= MAX_NGRAM, f"at most {MAX_NGRAM:,}"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("early_stopping", self.early_stopping in EARLY_STOPPING, "False, True or 'never'"),
        ):
            if not holds:
                raise UserError(f"{field}={getattr(self, field)!r} must be {rule}")
        if (self.min_new_tokens or 0) > self.max_new_tokens:
            raise UserError(f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}; "
                            "raise max_new_tokens")  # fmt: skip
        if self.num_beams > 1 and self.sampled:
            raise UserError(f"num_beams={self.num_beams} searches for the likeliest answer, but temperature="
                            f"{self.temperature} draws at random; set num_beams=1 or temperature=0")  # fmt: skip
        if self.num_beams > 1 and self.num_return > self.num_beams:
            raise UserError(
                f"num_return={self.num_return} needs at least as many beams; raise num_beams={self.num_beams}"
            )
        if self.num_return > 1 and self.num_beams == 1 and not self.sampled:
            raise UserError(f"num_return={self.num_return}: there is only one answer without sampling and beams; "
                            "raise temperature or num_beams")  # fmt: skip

    @property
    def sampled(self) -> bool:
        return self.temperature > 0

    @property
    def streams(self) -> int:
        """The number of answers that are generated for each row at the same time: beams or samples."""
        return max(self.num_beams, self.num_return)

    def complete(self, values: Mapping[str, int]) -> "Settings":
        """Return the settings with `values` for the fields that are None, or 0.

        A value of min_new_tokens above max_new_tokens is lowered: then no id ends an answer.
        """
        missing = {name: values.get(name, 0) for name in LEFT_TO_MODEL if getattr(self, name) is None}
        if "min_new_tokens" in missing:
            missing["min_new_tokens"] = min(missing["min_new_tokens"], self.max_new_tokens)
        return dataclasses.replace(self, **missing)

    def split(self) -> tuple["Settings", dict[str, float]]:
        """Return (settings in which one value stands for all numbers in use, {field: number}).

        So calls with different numbers share a program.
        """
        in_use = {name: value for name, (off, value) in NUMBERS.items() if getattr(self, name) not in (off, None)}
        return dataclasses.replace(self, **in_use), {name: getattr(self, name) for name in in_use}
