"""Answer in conversations, with the chat template of a run or of a release.

    generator = open_answerer("runs/chat")
    request = Request("And in winter?", messages=[{"role": "user", "content": "How warm is it?"}, …])

A request without messages is one message of the user. The model reads the messages as in training. If they are longer
than the rows of training, or than the network's positions allow, the oldest messages are left out: the answer's "cut"
then has {"tokens": 900, "read": 480, "messages": 4}.
"""

from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.chat.encoder import ChatEncoder, Lost
from t5lite.data.chat.messages import USER
from t5lite.data.rows import clip
from t5lite.interop.released import is_released
from t5lite.run.generator import Generator
from t5lite.run.released import OpenedModel
from t5lite.run.requests import Request


class ChatGenerator(Generator):
    """A model that was trained on conversations, or a release with a chat template."""

    def __init__(self, opened: OpenedModel, place: str | Path, **arguments: Any):
        super().__init__(opened, place, **arguments)
        self.chat: ChatEncoder = opened.chat
        self._is_pair = bool(self.model.config.num_encoder_layers)
        rows = self.objective.inputs_length if self._is_pair else self.objective.targets_length - 1
        self._longest = None if is_released(place) else rows

    def _encode_request(self, request: Request, more: int) -> tuple[np.ndarray, dict[str, int] | None]:
        """Return the tokens of the conversation, and what was cut or None. more: the tokens that follow."""
        messages = request.messages or [{"role": USER, "content": request.input}]
        front = [self.objective.bos] if self._is_pair and self.objective.bos is not None else []
        end = [self.tokenizer.vocabulary.eos] if self._is_pair else []
        limits = [] if self._longest is None else [self._longest]
        if (positions := self.model.config.max_positions) is not None:
            limits.append(positions if self._is_pair else positions - more - self.tokenizer.begins_with_start)
        limit = min(limits, default=None)
        if limit is None:
            ids, lost = self.chat.encode_prompt(messages), Lost(0, 0, 0)
        else:
            ids, lost = self.chat.fit_prompt(messages, max(limit - len(front) - len(end), 0))
        all_ids = np.concatenate([front, ids, end]).astype(np.int32)
        read = all_ids if limit is None or not self._is_pair else clip(all_ids, limit)
        if not lost.tokens and len(read) == len(all_ids):
            return read, None
        return read, {"tokens": len(all_ids) + lost.tokens, "read": len(read), "messages": lost.messages}

    def encode_target(self, text: str) -> np.ndarray:
        """Return the tokens of a given answer, as in training, with the token that closes it."""
        end = self.tokenizer.vocabulary.eos if self._is_pair else self.chat.stops[0]
        front = self.conventions.front if self._is_pair else ()
        return np.concatenate([front, self.chat.encode_answer(text), [end]]).astype(np.int32)

    def _encode_prefix(self, text: str) -> list[int]:
        return self.encode_target(text)[:-1].tolist() if text else []

    def _decode_answer(self, tokens: list[int]) -> str:
        return self.chat.decode_answer(self.conventions.text_tokens(tokens))
