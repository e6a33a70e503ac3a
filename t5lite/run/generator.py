"""Generated answers, and the probabilities of given ones."""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from t5lite.data.rows import clip
from t5lite.decoding.generate import Generated, Generation, pad_rows, step_weights
from t5lite.decoding.score import score_targets
from t5lite.model.transformer import StepWeights
from t5lite.run.answering import BATCH_SIZE, PLAIN, Answerer, Options, Ready, in_order
from t5lite.run.requests import Request, shortened
from t5lite.system.errors import UserError

PIECE = 16  # tokens between two checks whether a text stops


class Generator(Answerer):
    """A decoder or an encoder-decoder, which generates answers."""

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
        ids = clip(whole, self.objective.inputs_length)
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
        self, requests: Sequence[Request], options: Options = PLAIN, batch_size: int = BATCH_SIZE, strict: bool = True
    ) -> Iterator[dict]:
        """See `Answerer.answers`."""
        self.allowed(requests[:1], options.suppress)  # raises now for options that are wrong for every request
        yield from super().answers(requests, options, batch_size, strict)

    def scores(self, requests: Sequence[Request], batch_size: int = BATCH_SIZE, strict: bool = True) -> Iterator[dict]:
        """Yield {"input", "target", "tokens", "token_logprobs", "logprob"} for each request's target, in order."""
        yield from in_order(requests, batch_size, self._prepare_score, lambda chunk, places: self._score(chunk), strict)

    def prepare(self, request: Request, options: Options) -> Ready:
        """See `Answerer.prepare`."""
        prefix, more = self._prefix(request.prefix), options.settings.max_new_tokens
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

    def answer(self, ready: list[Ready], places: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`."""
        generation = self._generation(ready, places, options)
        if options.stop:
            for so_far in generation.pieces(PIECE, lambda row, tokens: self._stops(tokens, options.stop)):
                del so_far
        else:
            generation.advance()
        return self._read_out(ready, generation.result(), options)

    def stream(self, request: Request, options: Options, every: int = 4) -> Iterator[str]:
        """Yield the answer to one request in parts, as they are generated."""
        shown, ready = "", [self.prepare(request, options)]
        generation = self._generation(ready, [0], options)
        for so_far in generation.pieces(every, lambda row, tokens: self._stops(tokens, options.stop)):
            text = self._read_out(ready, so_far, options)[0]["output"]
            whole = text.rstrip("\ufffd")  # bytes of a character that is not complete yet
            if whole.startswith(shown) and len(whole) > len(shown):
                yield whole[len(shown) :]
                shown = whole

    def _generation(self, ready: list[Ready], places: list[int], options: Options) -> Generation:
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=self.model.config.max_positions)
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
                **(self.conventions.generation_arguments() | {"allowed": allowed}),
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
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=most)
        targets, target_lengths = pad_rows([each.tokens for each in ready], max_length=most)
        with jax.set_mesh(self.mesh):
            logprobs = np.asarray(
                score_targets(
                    self.model,
                    self.params,
                    inputs,
                    lengths,
                    targets,
                    target_lengths,
                    **self.conventions.scoring_arguments(),
                )
            )
        return [self._scored(each, row[: len(each.tokens)]) for each, row in zip(ready, logprobs, strict=False)]

    @staticmethod
    def _scored(ready: Ready, logprobs: np.ndarray) -> dict:
        found = {"target": ready.request.target, "tokens": ready.tokens, "token_logprobs": logprobs.tolist()}
        return ready.answer({**found, "logprob": float(np.sum(logprobs))})
