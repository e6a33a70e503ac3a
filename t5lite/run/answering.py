"""Answer requests in batches. The answers come in the order of the requests.

A batch holds texts of similar lengths. The answer to a text depends on the index of its request and on the seed, not on
the other texts of the batch. If a text was cut to the length that the network reads, its answer has
"cut": {"tokens": 900, "read": 512}.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.config import base_config
from t5lite.data.columns import read_columns
from t5lite.decoding.settings import Settings
from t5lite.run.released import OpenedModel
from t5lite.run.requests import Request
from t5lite.system import hosts
from t5lite.system.errors import UserError
from t5lite.training.sharding import make_mesh, sharded_shapes
from t5lite.training.start import load_params

BATCH_SIZE = 16
BATCHES_SORTED = 16  # batches per host whose texts are sorted by length together


# Fields of an answer. If a request has fields with these names, they are copied to the answer's field "given".
ANSWER_FIELDS = frozenset(("input", "target", "output", "tokens", "token_logprobs", "logprob", "score", "scores",
                           "score_by", "answers", "start", "margin", "cut", "error", "given"))  # fmt: skip


class PreparedRequest(NamedTuple):
    """A request as tokens.

    ids: the tokens that the network reads.
    tokens: the prefix of the answer, or the target to score.
    asked_positions: the positions in `ids` that an encoder is asked about. None for a model with a decoder.
    cut: see the module's docstring; None: nothing was cut.
    choices: {answer to choose from: its tokens}. Empty: the answer is free.
    """

    request: Request
    ids: np.ndarray
    tokens: Sequence[int] = ()
    asked_positions: np.ndarray | None = None
    cut: dict[str, int] | None = None
    choices: Mapping[str, Sequence[int]] = MappingProxyType({})

    def complete_answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return `answer` with the fields that every answer has."""
        cut = {} if self.cut is None else {"cut": self.cut}
        fields, given = self.request.fields, {}
        if clashing := fields.keys() & ANSWER_FIELDS:
            given = {"given": {name: fields[name] for name in fields if name in clashing}}
            fields = {name: value for name, value in fields.items() if name not in clashing}
        return {**fields, **given, "input": self.request.input, **answer, **cut}


@dataclasses.dataclass(frozen=True)
class Options:
    """How requests are answered.

    settings: how tokens are chosen.
    stop: texts that end an answer; the answer ends before them.
    suppress: texts that are never generated; each must be one token.
    seed: the seed of random choices.
    choices: the answers to choose from, for requests that have none of their own. (): the answers are free.
    score_by: how answers to choose from are compared, a name in `decoding.score.SCORE_BY`.
    """

    settings: Settings = dataclasses.field(default_factory=Settings)
    stop: tuple[str, ...] = ()
    suppress: tuple[str, ...] = ()
    seed: int = 0
    choices: tuple[str, ...] = ()
    score_by: str = base_config().eval.score_by


DEFAULTS = Options()


def refuse_choices(request: Request, options: Options) -> None:
    """Raise UserError for a request with choices. For models that cannot choose among given answers."""
    if request.choices or options.choices:
        raise UserError("this model chooses among answers only if its answers are labels of texts; leave choices out")


def answer_in_order(
    requests: Sequence[Request],
    batch_size: int,
    prepare: Callable[[Request], PreparedRequest],
    function: Callable[[list[PreparedRequest], list[int]], list[dict]],
    strict: bool = True,
) -> Iterator[dict]:
    """Yield the answers of `function` to all requests, in the order of the requests.

    `function` gets prepared requests of similar length, and their indices in `requests`. Several hosts take batches in
    turn, and host 0 yields all answers. If `prepare` raises a UserError, the answer is {"input", "error"}. With
    `strict`, the error is raised instead, when it is the request's turn.
    """

    def answer_batch(request_indices: list[int]) -> list[dict]:
        ready, answers = {}, {}
        for index in request_indices:
            request = requests[index]
            try:
                if request.fault is not None:
                    raise UserError(request.fault)
                ready[index] = prepare(request)
            except UserError as error:
                where = f"{request.place}: " if request.place else ""
                answers[index] = {"input": request.input, "error": f"{where}{error}"}
        if ready:
            answers |= dict(zip(ready, function(list(ready.values()), list(ready)), strict=True))
        return [answers[index] for index in request_indices]

    window = batch_size * BATCHES_SORTED * hosts.count_hosts()
    for first in range(0, len(requests), window):
        by_length = sorted(range(first, min(first + window, len(requests))), key=lambda i: len(requests[i].input))
        batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        answers: dict[int, dict] = {}
        for start in range(0, len(batches), hosts.count_hosts()):
            batch_index = start + hosts.get_index()
            own_indices = batches[batch_index] if batch_index < len(batches) else []
            for host_indices, host_answers in hosts.to_primary((own_indices, answer_batch(own_indices))):
                answers |= dict(zip(host_indices, host_answers, strict=True))
        for index in sorted(answers):
            if strict and "error" in answers[index]:
                raise UserError(answers[index]["error"])
            yield answers[index]


class Answerer(abc.ABC):
    """A model with its parameters, ready to answer.

    Args:
        opened: the model of `place`, a workdir or `hf:DIR`.
        step, average: which checkpoints to read instead of the newest, see `load_params`.
        tensor: the number of this host's devices over which the model is split.
    """

    def __init__(
        self, opened: OpenedModel, place: str | Path, step: str | None = None, average: int = 1, tensor: int = 1
    ):
        self.tokenizer, self.objective, self.model = opened.tokenizer, opened.objective, opened.model
        self.conventions, self.reading = opened.conventions, opened.reading
        train = opened.config.data.train
        self.columns = read_columns(train, train, "data.train")
        self.mesh = make_mesh(1, 1, tensor, devices=jax.local_devices()[:tensor])
        self.params, self.step = load_params(place, sharded_shapes(self.model.config, self.mesh), step, average)

    @abc.abstractmethod
    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """Return a request as tokens. Raises UserError for a text that the model cannot take."""

    @abc.abstractmethod
    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """Return the answers to a batch of requests. request_indices: the indices of `ready` among all requests."""

    def check(self, requests: Sequence[Request], options: Options) -> None:  # noqa: B027 - most kinds accept all
        """Raise UserError for options that are wrong for every request."""

    def answers(
        self,
        requests: Sequence[Request],
        options: Options = DEFAULTS,
        batch_size: int = BATCH_SIZE,
        strict: bool = True,
    ) -> Iterator[dict]:
        """Yield {"input", "output", "tokens", "token_logprobs", "logprob"} for each request, in order.

        Generated answers also have "score". With num_return above 1 they have "answers", a list of all, best first.
        Chosen answers have "answers", "score" and "score_by".
        strict: see `answer_in_order`.
        """
        self.check(requests, options)
        prepare = functools.partial(self.prepare, options=options)
        yield from answer_in_order(
            requests, batch_size, prepare, functools.partial(self.answer, options=options), strict
        )
