"""A model for EleutherAI's lm-evaluation-harness (`pip install lm_eval`), over any checkpoint with a decoder.

    python -m t5lite.run.lm_eval --model t5lite --model_args checkpoint=runs/tiny_lm --tasks lambada_openai
    lm_eval.simple_evaluate(model=make_lm_class()("runs/tiny_lm"), tasks=["lambada_openai"])

`python -m t5lite.run.lm_eval` is the harness's own command, with one more model, `t5lite`. Requests follow the rules of
the harness's class for transformers, HFLM:

    language model        context and continuation are tokens of one text; long contexts lose their beginning
    model of pairs,       the encoder (or the prompt) reads the context, which EOS ends; the continuation is the answer,
    denoiser              without EOS, and without the spaces in front that separate the two in one text
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.decoding.generate import pad_rows
from t5lite.decoding.score import find_likeliest
from t5lite.decoding.settings import Settings
from t5lite.run.answering import BATCH_SIZE, Options, PreparedRequest
from t5lite.run.answers import Generator, open_answerer
from t5lite.run.requests import Request
from t5lite.system.errors import UserError
from t5lite.system.progress import say, warn

MAX_NEW_TOKENS = 256  # the harness's number for tasks that set none
# {name in a task's generation_kwargs: field of Settings}
SETTINGS = {
    "max_gen_toks": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "num_beams")},
}


class Pair(NamedTuple):
    """The tokens that the model reads, and the tokens to score: no token that every answer begins with."""

    context: list[int]
    continuation: list[int]


class HarnessModel:
    """The three kinds of requests of the harness. Each request has `args`, a tuple of texts.

    Args:
        checkpoint: a workdir or `hf:DIR`.
        max_length: the number of tokens that the model reads at most: the encoder, or a decoder's context and
            continuation together. None: its positions, or the length of its examples in training.
        step, average, tensor: see `answering.Answerer`.
        device, max_batch_size: not used. The harness gives them to every model; JAX_PLATFORMS chooses the device.
    """

    def __init__(
        self,
        checkpoint: str,
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
        step: str | int | None = None,
        average: int = 1,
        tensor: int = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        del device, max_batch_size
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size!r} must be a whole number, at least 1")
        answerer = open_answerer(checkpoint, step=None if step is None else str(step), average=average, tensor=tensor)
        if not isinstance(answerer, Generator):
            raise UserError(f"{checkpoint} is an encoder, and the harness needs a model with a decoder")
        self.batch_size, self._generator = int(batch_size), answerer
        objective, limit = answerer.objective, answerer.model.config.max_positions
        self.continues = not objective.closes_inputs
        usual = objective.inputs_length if objective.closes_inputs else limit or objective.lengths[1]
        self.max_length = usual if max_length is None else max_length
        if limit is not None and self.max_length > limit:
            raise UserError(f"max_length={max_length}: the network has {limit} positions; lower it")
        self._prepends_start = int(answerer.conventions.prepend_start)
        self._lost = False

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return self._generator.tokenizer.sha256

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation, whether it is the greedy answer) for each (context, text)."""
        del disable_tqdm
        scores = self._score([self._encode_pair(*request.args) for request in requests])
        return self._note("loglikelihood", requests, [(float(each.sum()), bool(best.all())) for each, best in scores])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text. A long text is read in windows; each token counts once."""
        del disable_tqdm
        windows = [self._cut_windows(request.args[0]) for request in requests]
        scores = iter(self._score([window for each in windows for window in each]))
        totals = [float(sum(next(scores)[0].sum() for _ in each)) for each in windows]
        return self._note("loglikelihood_rolling", requests, totals)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each (context, generation_kwargs). It ends before the texts in "until"."""
        del disable_tqdm
        by_options: dict[Options, list[int]] = {}
        for index, request in enumerate(requests):
            by_options.setdefault(read_options(request.args[1]), []).append(index)
        answers: dict[int, str] = {}
        for options, indices in by_options.items():
            # Beams change during the search, so their answers are cut at the end.
            stop = options.stop if options.settings.num_beams > 1 else ()
            used = dataclasses.replace(options, stop=()) if stop else options
            ready = [self._prepare(requests[index].args[0], used) for index in indices]
            for batch in self._make_batches([each.ids for each in ready]):
                found = self._generator.answer([ready[i] for i in batch], [indices[i] for i in batch], used)
                answers |= {indices[i]: cut_text(each["output"], stop) for i, each in zip(batch, found, strict=True)}
        return self._note("generate_until", requests, [answers[index] for index in range(len(requests))])

    def _note(self, kind: str, requests: Sequence[Any], results: list[Any]) -> list[Any]:
        """Hand the results to the harness's cache, if there is one, and return them."""
        for request, result in zip(requests, results, strict=True):
            if (hook := getattr(self, "cache_hook", None)) is not None:
                hook.add_partial(kind, request.args, result)
        return results

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            continuation, context = context[-spaces:] + continuation, context[:-spaces]
        tokenizer = self._generator.tokenizer
        if not self.continues:
            answer = tokenizer.encode(continuation.lstrip() or continuation).tolist()
            return Pair(self._close_context(tokenizer.encode(context).tolist()), answer)
        ids = tokenizer.encode(context).tolist()
        return self._shorten(Pair(ids, tokenizer.encode(context + continuation)[len(ids) :].tolist()))

    def _close_context(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens that the encoder, or a decoder of pairs, reads: the end of a long context."""
        objective = self._generator.objective
        bos, eos = objective.bos, self._generator.tokenizer.vocabulary.eos
        front = [] if bos is None else [bos]
        return [*front, *self._keep_last(ids, self.max_length - len(front) - 1), eos]

    def _shorten(self, pair: Pair, more: int = 0) -> Pair:
        """Return a language model's pair with the end of its context, so that all fits with `more` tokens after it."""
        room = self.max_length + 1 - self._prepends_start - len(pair.continuation) - more
        if room < 1 - self._prepends_start:
            size = len(pair.continuation) + more
            raise UserError(f"{size} tokens after a context do not fit in max_length={self.max_length}; raise it")
        context = self._keep_last(pair.context, room)
        if not context and not self._prepends_start:
            context = [self._generator.tokenizer.vocabulary.start]
        return Pair(context, pair.continuation)

    def _keep_last(self, ids: Sequence[int], count: int) -> list[int]:
        if len(ids) > count and not self._lost:
            self._lost = True
            warn(f"a context has {len(ids)} tokens, but the model reads {count} (max_length={self.max_length}): the "
                 "beginning of long contexts is cut off")  # fmt: skip
        return list(ids[max(len(ids) - count, 0) :])

    def _cut_windows(self, text: str) -> list[Pair]:
        """Return the windows of a text. Each token is scored once, after as much context as fits.

        With max_length 4 and a start token, which only stands in front of a language model's window if it always does:

            tokens 0 1 2 3 4 5 6 7 8 9    start → 0 1 2 3      3 → 4 5 6 7      5 6 7 → 8 9
        """
        ids = self._generator.tokenizer.encode(text).tolist()
        room = self.max_length - (self._prepends_start if self.continues else 0)
        first, wrap = self.max_length, self._close_context
        if self.continues:
            empty = [] if self._prepends_start else [self._generator.tokenizer.vocabulary.start]
            wrap = lambda context: list(context) or empty
        windows = [Pair(wrap([]), ids[:first])] if ids else []
        for begin in range(first, len(ids), room):
            end = min(begin + room, len(ids))
            windows.append(Pair(wrap(ids[end - room - 1 : begin]), ids[begin:end]))
        return windows

    def _prepare(self, context: str, options: Options) -> PreparedRequest:
        ids = self._generator.tokenizer.encode(context, specials=True).tolist()
        more = options.settings.max_new_tokens
        ids = self._shorten(Pair(ids, []), more).context if self.continues else self._close_context(ids)
        return PreparedRequest(Request(context), np.array(ids, np.int32))

    def _make_batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the indices of rows of similar lengths, the longest first."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return, for each pair, the log-probability of each token that follows, and whether it is the likeliest."""
        generator, results = self._generator, {}
        limit, front = generator.model.config.max_positions, [] if self.continues else generator.conventions.front
        for batch in self._make_batches([each.context + each.continuation for each in pairs]):
            inputs, lengths = pad_rows([pairs[index].context for index in batch], max_length=limit)
            follow = [[*front, *pairs[index].continuation] or [0] for index in batch]
            targets, target_lengths = pad_rows(follow, max_length=limit)
            with jax.set_mesh(generator.mesh):
                found = find_likeliest(generator.model, generator.params, inputs, lengths, targets, target_lengths,
                                       **generator.conventions.scoring_arguments())  # fmt: skip
            for index, *row in zip(batch, *jax.device_get(found), strict=False):
                results[index] = tuple(each[len(front) : len(front) + len(pairs[index].continuation)] for each in row)
        return [results[index] for index in range(len(pairs))]


def read_options(fields: Mapping[str, Any]) -> Options:
    """Return the options for a task's generation_kwargs. Raises UserError for an unknown field."""
    fields = dict(fields)
    until, samples = fields.pop("until", None) or [], fields.pop("do_sample", None)
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    if unknown := fields.keys() - SETTINGS.keys():
        raise UserError(f"generation_kwargs: {min(unknown)} is unknown; known: until, do_sample, {', '.join(SETTINGS)}")
    values = {SETTINGS[name]: value for name, value in fields.items() if value is not None}
    if samples is False:
        values.pop("temperature", None)
    elif samples:
        values.setdefault("temperature", 1.0)
    return Options(Settings(**{"max_new_tokens": MAX_NEW_TOKENS, **values}), stop)


def cut_text(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the `stop` texts."""
    return text[: min((text.index(each) for each in stop if each in text), default=len(text))]


@functools.cache
def make_lm_class() -> Callable[..., Any]:
    """Return the class of the model, registered in the harness as "t5lite". Needs the package lm_eval."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise UserError("the package lm_eval is not installed; run: pip install lm_eval") from error

    @register_model("t5lite")
    class T5Lite(HarnessModel, LM):
        def __init__(self, *arguments: Any, **fields: Any):
            LM.__init__(self)
            HarnessModel.__init__(self, *arguments, **fields)

    return T5Lite


def main() -> None:
    """Run the harness's command. A mistake that t5lite finds ends in one line, with exit code 2."""
    try:
        make_lm_class()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        say(f"t5lite: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
