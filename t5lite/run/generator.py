"""Generate answers, and compute the probabilities of given answers."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.data.rows import clip
from t5lite.decoding.generate import Generated, Generation, pad_rows, step_weights
from t5lite.decoding.score import score_targets
from t5lite.model.transformer import StepWeights
from t5lite.run.answering import BATCH_SIZE, Answerer, Options, PreparedRequest, answer_in_order
from t5lite.run.choices import choose_answers
from t5lite.run.requests import Request, shorten
from t5lite.system.errors import UserError
from t5lite.tasks.texts import SENTINEL

CHECK_EVERY = 16  # tokens between two checks whether an answer has reached a stop text


class Generator(Answerer):
    """A decoder or an encoder-decoder that generates answers.

    forced_bos: a text of one token, with which every answer begins; None: the model's conventions decide. The token is
        not part of the answer's text.
    """

    def __init__(self, *arguments: Any, forced_bos: str | None = None, **options: Any):
        super().__init__(*arguments, **options)
        self._encode_choices = functools.lru_cache(64)(self._encode_targets)
        if forced_bos is not None:
            self.conventions = self.conventions.force_first(self._encode_one_token("--forced_bos", forced_bos))

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens that the model reads for a text. EOS ends them if the objective's inputs end with EOS.

        For a model that was trained on pairs, a long text is cut to `objective.inputs_length`, as in evaluation.
        """
        return self._check_positions(self._encode(text)[0], text)

    def _encode(self, text: str) -> tuple[np.ndarray, dict[str, int] | None]:
        """Return the tokens of `encode`, and {"tokens": their number, "read": their number after the cut} or None."""
        ids = self.tokenizer.encode(text, specials=True)
        if not self.objective.closes_inputs:
            return ids, None
        front = np.array([] if self.objective.bos is None else [self.objective.bos], np.int32)
        all_ids = np.concatenate([front, ids, [self.tokenizer.vocabulary.eos]]).astype(np.int32)
        if self.objective.rows != "pairs":
            return all_ids, None
        ids = clip(all_ids, self.objective.inputs_length)
        return ids, None if len(ids) == len(all_ids) else {"tokens": len(all_ids), "read": len(ids)}

    def encode_target(self, text: str) -> np.ndarray:
        """Return the tokens of a given answer, as in training.

        EOS ends the tokens, except for a language model: its answer continues the input, and nothing is added.
        """
        front = self.conventions.front
        if not self.objective.closes_inputs:
            return np.concatenate([front, self._encode_continuation(text)]).astype(np.int32)
        ids = self.tokenizer.encode(text, specials=True)
        return np.concatenate([front, ids, [self.tokenizer.vocabulary.eos]]).astype(np.int32)

    def _encode_continuation(self, text: str) -> np.ndarray:
        return self.tokenizer.encode_many([text], [True])[0]

    def _encode_prefix(self, text: str) -> list[int]:
        """Return the tokens that the answer must begin with."""
        if not text:
            return []
        is_continuation = not self.objective.closes_inputs
        ids = self._encode_continuation(text) if is_continuation else self.tokenizer.encode(text, specials=True)
        return [*self.conventions.front, *ids.tolist()]

    def _check_positions(self, ids: np.ndarray, text: str, more: int = 0) -> np.ndarray:
        """Return `ids`. Raises UserError if the model has too few positions for `ids` and `more` tokens."""
        limit = self.model.config.max_positions
        if limit is not None and len(ids) + more > limit:
            after = f" and {more} are to follow" if more else ""
            raise UserError(
                f"the text has {len(ids)} tokens{after}, but the network has {limit} positions: {shorten(text)}"
            )
        return ids

    def allowed(self, requests: Sequence[Request], suppress: Sequence[str]) -> np.ndarray:
        """Return bool [B, ids]: which ids may be generated for each request.

        Sentinels are not allowed if neither the text nor the prefix contains one. Otherwise, weights that were trained
        with sentinels would generate them. Many released weights are such weights.
        """
        vocabulary = self.tokenizer.vocabulary
        allowed = self.conventions.allowed.copy()
        for text in suppress:
            token, rules = self._encode_one_token("--suppress", text), self.conventions.rules
            if token in (rules.first, rules.last):
                raise UserError(
                    f"--suppress: {text!r} is a token that every answer of this model must hold; leave it out"
                )
            allowed[token] = False
        rows = np.repeat(allowed[None], len(requests), axis=0)
        if self.objective.targets_hold_specials:
            sentinels = slice(vocabulary.pieces, vocabulary.size)
            for row, request in zip(rows, requests, strict=True):
                row[sentinels] &= "<extra_id_" in request.input + request.prefix
        return rows

    def _encode_one_token(self, flag: str, text: str) -> int:
        candidates = [self.tokenizer.encode(text, specials=True), self._encode_continuation(text)]
        ids = next((ids for ids in candidates if len(ids) == 1), None)
        if ids is None:
            raise UserError(f"{flag}: {text!r} is {len(candidates[0])} tokens; give a text that is one token")
        return int(ids[0])

    def find_leaks(self, request: Request, output: str, tokens: Sequence[int] = ()) -> list[str]:
        """Return the names of tokens in an answer that are not text. Sentinels are left out if the request has a blank.

        tokens: the tokens of the answer, if they are known. Without them, only sentinels are found.
        """
        names, hidden = self.tokenizer.names, self.tokenizer.hidden_ids
        ids = self.conventions.text_tokens(tokens)
        found = [*SENTINEL.findall(output), *(names[token] for token in ids if token in names and token not in hidden)]
        if SENTINEL.search(request.input + request.prefix):
            found = [name for name in found if not SENTINEL.fullmatch(name)]
        return list(dict.fromkeys(found))

    def check(self, requests: Sequence[Request], options: Options) -> None:
        """See `Answerer.check`."""
        self.allowed(requests[:1], options.suppress)

    def scores(self, requests: Sequence[Request], batch_size: int = BATCH_SIZE, strict: bool = True) -> Iterator[dict]:
        """Yield {"input", "target", "tokens", "token_logprobs", "logprob"} for each request's target, in order."""
        yield from answer_in_order(
            requests, batch_size, self._prepare_score, lambda chunk, request_indices: self._score(chunk), strict
        )

    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """See `Answerer.prepare`."""
        if choices := request.choices or options.choices:
            return self._prepare_choices(request, choices)
        prefix, more = self._encode_prefix(request.prefix), options.settings.max_new_tokens
        if len(prefix) > more:
            raise UserError(
                f"a prefix of {len(prefix)} tokens is longer than max_new_tokens={more}; raise max_new_tokens"
            )
        return self._make_prepared(request, prefix, more)

    def _encode_targets(self, texts: Sequence[str]) -> dict[str, list[int]]:
        return {text: self.encode_target(text).tolist() for text in texts}

    def _prepare_choices(self, request: Request, choices: Sequence[str]) -> PreparedRequest:
        if request.prefix:
            raise UserError("a prefix has no meaning beside answers to choose from; leave the prefix out")
        tokens = self._encode_choices(tuple(choices))
        return self._make_prepared(request, [], max(map(len, tokens.values())))._replace(choices=tokens)

    def _prepare_score(self, request: Request) -> PreparedRequest:
        if request.target is None:
            name = shorten(repr(request.input))
            raise UserError(f"--score needs a target for {name}: give --target, or a target in a .jsonl")
        target = self.encode_target(request.target).tolist()
        return self._make_prepared(request, target, len(target))

    def _make_prepared(self, request: Request, tokens: list[int], more: int) -> PreparedRequest:
        ids, cut = self._encode_request(request, more)
        self._check_positions(ids, request.input)
        if not len(ids) and not self.objective.closes_inputs and not self.tokenizer.begins_with_start:
            ids = np.array([self.tokenizer.vocabulary.start], np.int32)  # an empty prompt begins with the start token
        if self.model.config.num_encoder_layers:
            self._check_positions(ids[:0], request.input, more)
        else:
            self._check_positions(ids, request.input, more + self.tokenizer.begins_with_start)
        return PreparedRequest(request, ids, tokens, cut=cut)

    def _encode_request(self, request: Request, more: int) -> tuple[np.ndarray, dict[str, int] | None]:
        """See `_encode`. more: the number of tokens that follow."""
        del more
        return self._encode(request.input)

    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`."""
        kinds: dict[bool, list[int]] = {}  # {whether the answers are chosen: indices in `ready`}
        for index, each in enumerate(ready):
            kinds.setdefault(bool(each.choices), []).append(index)
        answers: dict[int, dict] = {}
        for is_choice, indices in kinds.items():
            requests, answer = [ready[i] for i in indices], self._choose if is_choice else self._generate
            answers |= dict(zip(indices, answer(requests, [request_indices[i] for i in indices], options), strict=True))
        return [answers[index] for index in range(len(ready))]

    def _choose(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        with jax.set_mesh(self.mesh):
            arguments = self.conventions.scoring_arguments()
            return choose_answers(self.model, self.params, ready, options.score_by, **arguments)

    def _generate(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        generation = self._start_generation(ready, request_indices, options)
        if options.stop:
            for so_far in generation.pieces(CHECK_EVERY, lambda row, tokens: self._stops(tokens, options.stop)):
                del so_far
        else:
            generation.advance()
        return self._read_answers(ready, generation.result(), options)

    def stream(self, request: Request, options: Options, every: int = 4) -> Iterator[str]:
        """Yield the answer to one request in parts, as they are generated."""
        shown, ready = "", [self.prepare(request, options)]
        generation = self._start_generation(ready, [0], options)
        for so_far in generation.pieces(every, lambda row, tokens: self._stops(tokens, options.stop)):
            text = self._read_answers(ready, so_far, options)[0]["output"]
            complete = text.rstrip("\ufffd")  # drop bytes of a character that is not complete yet
            if complete.startswith(shown) and len(complete) > len(shown):
                yield complete[len(shown) :]
                shown = complete

    def _start_generation(
        self, ready: list[PreparedRequest], request_indices: list[int], options: Options
    ) -> Generation:
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=self.model.config.max_positions)
        extra = [0] * (len(inputs) - len(ready))  # extra rows of the batch repeat the first row
        filled = [*ready, *(ready[i] for i in extra)]
        seed = jax.random.key(options.seed)
        key_indices = np.array([*request_indices, *(request_indices[i] for i in extra)])
        keys = jax.vmap(lambda index: jax.random.fold_in(seed, index))(key_indices)
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
        text = self._decode_answer(tokens)
        return any(each in text for each in stop)

    def _decode_answer(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(self.conventions.text_tokens(tokens))

    def _read_answers(self, ready: Sequence[PreparedRequest], generated: Generated, options: Options) -> list[dict]:
        """Return an answer for each request, without the extra rows."""
        answers = []
        for prepared, *row in zip(ready, *jax.device_get(generated), strict=False):
            row_answers = [self._read_answer(*one, options.stop) for one in zip(*row, strict=True) if one[1] > 0]
            empty = {"output": "", "tokens": [], "token_logprobs": [], "logprob": 0.0, "score": 0.0}
            best = row_answers[0] if row_answers else empty
            more = {"answers": row_answers} if options.settings.num_return > 1 else {}
            answers.append(prepared.complete_answer({**best, **more}))
        return answers

    def _read_answer(
        self, tokens: np.ndarray, length: int, logprobs: np.ndarray, score: float, stop: Sequence[str]
    ) -> dict:
        """Return one answer. The text ends before the first stop text, the tokens end with that stop text."""
        count, text = int(length), self._decode_answer(tokens[:length].tolist())
        if any(each in text for each in stop):
            count = next(n for n in range(1, count + 1) if self._stops(tokens[:n].tolist(), stop))
            text = self._decode_answer(tokens[:count].tolist())
            text = text[: min(text.index(each) for each in stop if each in text)]
        logprob = float(logprobs[:count].sum())
        return {
            "output": text,
            "tokens": tokens[:count].tolist(),
            "token_logprobs": logprobs[:count].tolist(),
            "logprob": logprob,
            "score": float(score) if count == length else logprob,
        }

    def _score(self, ready: list[PreparedRequest]) -> list[dict]:
        limit = self.model.config.max_positions
        inputs, lengths = pad_rows([each.ids for each in ready], max_length=limit)
        targets, target_lengths = pad_rows([each.tokens for each in ready], max_length=limit)
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
        return [
            self._make_score_answer(each, row[: len(each.tokens)]) for each, row in zip(ready, logprobs, strict=False)
        ]

    @staticmethod
    def _make_score_answer(ready: PreparedRequest, logprobs: np.ndarray) -> dict:
        answer = {"target": ready.request.target, "tokens": ready.tokens, "token_logprobs": logprobs.tolist()}
        return ready.complete_answer({**answer, "logprob": float(np.sum(logprobs))})
