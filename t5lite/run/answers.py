"""Answers of a run, or of released weights, to texts. `generate` prints them.

    generator = Generator("runs/tiny")
    for answer in generator.answers([Request("The <extra_id_0> sat on the mat.")], Options(Settings())):
        answer["output"], answer["logprob"]

Requests are answered in batches of texts with similar lengths. Answers are returned in the order of the requests. The
answer to a text depends on the text's place and the seed, not on the other texts of the batch. If a text was cut to the
length that the network reads, its answer has "cut": {"tokens": 900, "read": 512}.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.data.rows import clipped
from t5lite.decoding.generate import Generated, Generation, pad_rows, step_weights
from t5lite.decoding.score import score_targets
from t5lite.decoding.settings import Settings
from t5lite.model.transformer import StepWeights
from t5lite.run.released import open_model
from t5lite.system import hosts
from t5lite.system.errors import UserError
from t5lite.training.sharding import make_mesh, placed_shapes
from t5lite.training.start import load_params

BATCH_SIZE = 16
BATCHES_SORTED = 16  # batches a host; texts of similar length are put together among them
PIECE = 16  # tokens between two checks whether a text stops


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to answer.

    prefix: the text with which the answer must begin.
    target: the text to score instead of generating.
    fields: the fields of the request's JSON line, which are copied to the answer.
    place: file and line of the request, for errors.
    fault: why the request cannot be answered, if that is already known.
    """

    input: str
    prefix: str = ""
    target: str | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    place: str = ""
    fault: str | None = None


# Fields of an answer. If a request has fields with these names, they are copied to the answer's field "given".
OWN_FIELDS = frozenset(("input", "target", "output", "tokens", "token_logprobs", "logprob", "score", "answers", "cut",
                        "error", "given"))  # fmt: skip


class Ready(NamedTuple):
    """A request as tokens.

    ids: the tokens that the network reads.
    tokens: the prefix of the answer, or the target to score.
    asked: the places that an encoder is asked about.
    cut: see the module; None: nothing was cut.
    """

    request: Request
    ids: np.ndarray
    tokens: Sequence[int] = ()
    asked: np.ndarray | None = None
    cut: dict[str, int] | None = None

    def answer(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the answer `found` with the fields that every answer has."""
        cut = {} if self.cut is None else {"cut": self.cut}
        fields, given = self.request.fields, {}
        if clashing := fields.keys() & OWN_FIELDS:
            given = {"given": {name: fields[name] for name in fields if name in clashing}}
            fields = {name: value for name, value in fields.items() if name not in clashing}
        return {**fields, **given, "input": self.request.input, **found, **cut}


@dataclasses.dataclass(frozen=True)
class Options:
    """How requests are answered.

    settings: how tokens are chosen.
    stop: texts before which an answer ends.
    suppress: texts of one token each that are never generated.
    seed: for random choices.
    """

    settings: Settings
    stop: tuple[str, ...] = ()
    suppress: tuple[str, ...] = ()
    seed: int = 0


def in_order(
    requests: Sequence[Request],
    batch_size: int,
    prepare: Callable[[Request], Ready],
    function: Callable[[list[Ready], list[int]], list[dict]],
    strict: bool = True,
) -> Iterator[dict]:
    """Yield function(prepared requests of similar length, their places) for all requests, in the order of their places.

    Several hosts take batches in turn, and host 0 yields all answers. If `prepare` refuses a request with a UserError,
    the answer is {"input", "error"}; with `strict`, the error is raised when it is the request's turn.
    """

    def answered(places: list[int]) -> list[dict]:
        ready, found = {}, {}
        for place in places:
            request = requests[place]
            try:
                if request.fault is not None:
                    raise UserError(request.fault)
                ready[place] = prepare(request)
            except UserError as error:
                where = f"{request.place}: " if request.place else ""
                found[place] = {"input": request.input, "error": f"{where}{error}"}
        if ready:
            found |= dict(zip(ready, function(list(ready.values()), list(ready)), strict=True))
        return [found[place] for place in places]

    window = batch_size * BATCHES_SORTED * hosts.count()
    for first in range(0, len(requests), window):
        places = sorted(range(first, min(first + window, len(requests))), key=lambda i: len(requests[i].input))
        batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        found: dict[int, dict] = {}
        for start in range(0, len(batches), hosts.count()):
            mine = batches[start + hosts.index()] if start + hosts.index() < len(batches) else []
            for places_of_host, each in hosts.to_primary((mine, answered(mine))):
                found |= dict(zip(places_of_host, each, strict=True))
        for place in sorted(found):
            if strict and "error" in found[place]:
                raise UserError(found[place]["error"])
            yield found[place]


class Generator:
    """The model of a workdir or of `hf:DIR`, with its parameters.

    step, average: which checkpoints to read instead of the newest, as for `load_params`.
    tensor: the number of this host's devices over which the model is split.
    """

    def __init__(self, place: str | Path, step: str | None = None, average: int = 1, tensor: int = 1):
        opened = open_model(place)
        self.tokenizer, self.objective, self.model = opened.tokenizer, opened.objective, opened.model
        self.conventions = opened.conventions
        self.columns = opened.config.data.train.columns
        self.mesh = make_mesh(1, 1, tensor, devices=jax.local_devices()[:tensor])
        self.params, self.step = load_params(place, placed_shapes(self.model.config, self.mesh), step, average)

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens that the model reads for a text. EOS closes them where the objective closes its inputs.

        A model that was trained on pairs reads as many tokens as the inputs of a pair had, as in evaluation.
        """
        return self._fitting(self._encode(text)[0], text)

    def _encode(self, text: str) -> tuple[np.ndarray, dict[str, int] | None]:
        """Return the tokens of `encode` and, if they were cut, {"tokens": all, "read": those kept}; else None."""
        ids = self.tokenizer.encode(text, specials=True)
        if not self.objective.closes_inputs:
            return ids, None
        front = np.array([] if self.objective.bos is None else [self.objective.bos], np.int32)
        whole = np.concatenate([front, ids, [self.tokenizer.vocabulary.eos]]).astype(np.int32)
        if self.objective.rows != "pairs":
            return whole, None
        ids = clipped(whole, self.objective.inputs_length)
        return ids, None if len(ids) == len(whole) else {"tokens": len(whole), "read": len(ids)}

    def encode_target(self, text: str) -> np.ndarray:
        """Return the tokens of a given answer as training has them.

        EOS closes them, except where the objective does not close its inputs: a language model's answer goes on from
        its input, and nothing is added.
        """
        if not self.objective.closes_inputs:
            return self._continued(text)
        ids = self.tokenizer.encode(text, specials=True)
        front = self.conventions.front
        return np.concatenate([front, ids, [self.tokenizer.vocabulary.eos]]).astype(np.int32)

    def _continued(self, text: str) -> np.ndarray:
        return self.tokenizer.encode_many([text], [True])[0]

    def _prefix(self, text: str) -> list[int]:
        """Return the tokens with which an answer must begin."""
        if not text:
            return []
        if not self.objective.closes_inputs:
            return self._continued(text).tolist()
        return [*self.conventions.front, *self.tokenizer.encode(text, specials=True).tolist()]

    def _fitting(self, ids: np.ndarray, text: str, more: int = 0) -> np.ndarray:
        """Return `ids`. Raises UserError if the model does not have positions for them and `more` tokens."""
        most = self.model.config.max_positions
        if most is not None and len(ids) + more > most:
            after = f" and {more} are to follow" if more else ""
            raise UserError(
                f"the text has {len(ids)} tokens{after}, the network has positions for {most}: {shortened(text)}"
            )
        return ids

    def allowed(self, requests: Sequence[Request], suppress: Sequence[str]) -> np.ndarray:
        """Return bool [B, ids]: which ids may be generated for each request.

        Sentinels are not allowed where neither the text nor the prefix contains one. Weights that were trained with
        sentinels, and perhaps on other tasks afterwards, as released ones are, would otherwise generate them.
        """
        vocabulary = self.tokenizer.vocabulary
        allowed = self.conventions.allowed.copy()
        for text in suppress:
            token, rules = self._single(text), self.conventions.rules
            if token in (rules.first, rules.last):
                raise UserError(f"--suppress: {text!r} is a token that every answer of this model has to hold")
            allowed[token] = False
        rows = np.repeat(allowed[None], len(requests), axis=0)
        if self.objective.targets_hold_specials:
            sentinels = slice(vocabulary.pieces, vocabulary.size)
            for row, request in zip(rows, requests, strict=True):
                row[sentinels] &= "<extra_id_" in request.input + request.prefix
        return rows

    def _single(self, text: str) -> int:
        either = [self.tokenizer.encode(text, specials=True), self._continued(text)]
        found = next((ids for ids in either if len(ids) == 1), None)
        if found is None:
            raise UserError(f"--suppress: {text!r} is {len(either[0])} tokens, but it takes what is one")
        return int(found[0])

    def answers(
        self, requests: Sequence[Request], options: Options, batch_size: int = BATCH_SIZE, strict: bool = True
    ) -> Iterator[dict]:
        """Yield {"input", "output", "tokens", "token_logprobs", "logprob", "score"} of each request, in their order.

        With num_return above 1, an answer also has "answers", the list of all, best first. strict: see `in_order`.
        """
        self.allowed(requests[:1], options.suppress)  # raises now for options that are wrong for every request
        prepare = functools.partial(self.prepare, more=options.settings.max_new_tokens)
        function = functools.partial(self._answer, options=options)
        yield from in_order(requests, batch_size, prepare, function, strict)

    def scores(self, requests: Sequence[Request], batch_size: int = BATCH_SIZE, strict: bool = True) -> Iterator[dict]:
        """Yield {"input", "target", "tokens", "token_logprobs", "logprob"} for each request's target, in order."""
        yield from in_order(requests, batch_size, self._prepare_score, lambda chunk, places: self._score(chunk), strict)

    def prepare(self, request: Request, more: int) -> Ready:
        """Return a request as tokens; `more` are to follow. Raises UserError for a text that the model cannot take."""
        prefix = self._prefix(request.prefix)
        if len(prefix) > more:
            raise UserError(f"a prefix of {len(prefix)} tokens is longer than max_new_tokens={more}")
        return self._ready(request, prefix, more)

    def _prepare_score(self, request: Request) -> Ready:
        if request.target is None:
            name = shortened(repr(request.input))
            raise UserError(f"--score needs a target for {name}: give --target, or name it in a .jsonl")
        target = self.encode_target(request.target).tolist()
        return self._ready(request, target, len(target))

    def _ready(self, request: Request, tokens: list[int], more: int) -> Ready:
        ids, cut = self._encode(request.input)
        self._fitting(ids, request.input)
        if not len(ids) and not self.objective.closes_inputs and not self.tokenizer.begins_with_start:
            ids = np.array([self.tokenizer.vocabulary.start], np.int32)  # an empty prompt without a start token
        if self.model.config.num_encoder_layers:
            self._fitting(ids[:0], request.input, more)
        else:
            self._fitting(ids, request.input, more + self.tokenizer.begins_with_start)
        return Ready(request, ids, tokens, cut=cut)

    def _answer(self, ready: list[Ready], places: list[int], options: Options) -> list[dict]:
        generation = self._generation(ready, places, options)
        if options.stop:
            for so_far in generation.pieces(PIECE, lambda row, tokens: self._stops(tokens, options.stop)):
                del so_far
        else:
            generation.advance()
        return self._read_out(ready, generation.result(), options)

    def stream(self, request: Request, options: Options, every: int = 4) -> Iterator[str]:
        """Yield the answer to one request in parts, as they are generated."""
        shown, ready = "", [self.prepare(request, options.settings.max_new_tokens)]
        generation = self._generation(ready, [0], options)
        for so_far in generation.pieces(every, lambda row, tokens: self._stops(tokens, options.stop)):
            text = self._read_out(ready, so_far, options)[0]["output"]
            whole = text.rstrip("\ufffd")  # bytes of a character that is not complete yet
            if whole.startswith(shown) and len(whole) > len(shown):
                yield whole[len(shown) :]
                shown = whole

    def _generation(self, ready: list[Ready], places: list[int], options: Options) -> Generation:
        inputs, lengths = pad_rows([each.ids for each in ready], most=self.model.config.max_positions)
        again = [0] * (len(inputs) - len(ready))  # extra rows of the batch, which repeat the first
        filled = [*ready, *(ready[i] for i in again)]
        seed = jax.random.key(options.seed)
        keys = jax.vmap(lambda place: jax.random.fold_in(seed, place))(np.array([*places, *(places[i] for i in again)]))
        allowed = self.allowed([each.request for each in filled], options.suppress)
        with jax.set_mesh(self.mesh):
            return Generation(
                self.model,
                self.params,
                inputs,
                lengths,
                options.settings,
                keys=keys,
                prefixes=[each.tokens for each in filled],
                weights=self._step_weights,
                **(self.conventions.generating() | {"allowed": allowed}),
            )

    @functools.cached_property
    def _step_weights(self) -> StepWeights:
        return step_weights(self.model, self.params)

    def _stops(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        text = self._text(tokens)
        return any(each in text for each in stop)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(self.conventions.text_tokens(tokens))

    def _read_out(self, ready: Sequence[Ready], generated: Generated, options: Options) -> list[dict]:
        """Return an answer for each request, without the extra rows."""
        found = []
        for asked, *row in zip(ready, *jax.device_get(generated), strict=False):
            each = [self._one(*answer, options.stop) for answer in zip(*row, strict=True) if answer[1] > 0]
            best = each[0] if each else {"output": "", "tokens": [], "token_logprobs": [], "logprob": 0.0, "score": 0.0}
            more = {"answers": each} if options.settings.num_return > 1 else {}
            found.append(asked.answer({**best, **more}))
        return found

    def _one(self, tokens: np.ndarray, length: int, logprobs: np.ndarray, score: float, stop: Sequence[str]) -> dict:
        """Return one answer, cut before the first stop text. Its last token is the one that completes the stop text."""
        count, text = int(length), self._text(tokens[:length].tolist())
        if any(each in text for each in stop):
            count = next(n for n in range(1, count + 1) if self._stops(tokens[:n].tolist(), stop))
            text = self._text(tokens[:count].tolist())
            text = text[: min(text.index(each) for each in stop if each in text)]
        logprob = float(logprobs[:count].sum())
        return {
            "output": text,
            "tokens": tokens[:count].tolist(),
            "token_logprobs": logprobs[:count].tolist(),
            "logprob": logprob,
            "score": float(score) if count == length else logprob,
        }

    def _score(self, ready: list[Ready]) -> list[dict]:
        most = self.model.config.max_positions
        inputs, lengths = pad_rows([each.ids for each in ready], most=most)
        targets, target_lengths = pad_rows([each.tokens for each in ready], most=most)
        with jax.set_mesh(self.mesh):
            logprobs = np.asarray(
                score_targets(
                    self.model, self.params, inputs, lengths, targets, target_lengths, **self.conventions.reading()
                )
            )
        return [self._scored(each, row[: len(each.tokens)]) for each, row in zip(ready, logprobs, strict=False)]

    @staticmethod
    def _scored(ready: Ready, logprobs: np.ndarray) -> dict:
        found = {"target": ready.request.target, "tokens": ready.tokens, "token_logprobs": logprobs.tolist()}
        return ready.answer({**found, "logprob": float(np.sum(logprobs))})


def shortened(text: str) -> str:
    """Return at most 60 characters of a text, for an error."""
    return text if len(text) <= 60 else f"{text[:60]}…"
