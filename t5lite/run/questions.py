"""Answer a question with a part of its context."""

import numpy as np

from t5lite.data.questions import NOT_HERE, cut_windows, encode_context, most_asked
from t5lite.decoding.generate import pad_rows
from t5lite.run.answering import Answerer, Options, PreparedRequest, refuse_choices
from t5lite.run.heads import compute_outputs
from t5lite.run.requests import Request
from t5lite.run.spans import join_windows, read_window
from t5lite.system.errors import UserError


class QuestionAnswerer(Answerer):
    """A model that answers with a span of the context in the request's fields."""

    def prepare(self, request: Request, options: Options) -> PreparedRequest:
        """Return the tokens of the question, cut to half of a row, as in evaluation.

        Raises UserError for a request without a context, and for choices.
        """
        refuse_choices(request, options)
        if not isinstance(request.fields.get(self.columns.context), str):
            raise UserError(
                f"the question has no context: give a line of .jsonl with {self.columns.question!r} and "
                f"{self.columns.context!r}"
            )
        ids, limit = self.tokenizer.encode(request.input), most_asked(self.objective.window)
        cut = {"tokens": len(ids), "read": limit} if len(ids) > limit else None
        return PreparedRequest(request, ids[:limit], cut=cut)

    def answer(self, ready: list[PreparedRequest], request_indices: list[int], options: Options) -> list[dict]:
        """See `Answerer.answer`. An answer has "start", its first character in the context, and "margin"."""
        return [each.complete_answer(self._answer_one(each)) for each in ready]

    def _answer_one(self, ready: PreparedRequest) -> dict:
        window, front, eos = self.objective.window, self.objective.front_length, self.tokenizer.vocabulary.eos
        context = ready.request.fields[self.columns.context]
        ids = encode_context(self.tokenizer, context)[0]
        windows = cut_windows(len(ready.ids), len(ids), window)
        rows = [np.concatenate([ready.ids, [eos], ids[start:stop], [eos]]) for start, stop in windows]
        inputs, lengths = pad_rows(rows, max_length=window)
        logits, _ = compute_outputs(self, inputs, lengths, np.full((len(inputs), 2), NOT_HERE, np.int32))
        found = [read_window(logits[row], (len(ready.ids), *window), front) for row, window in enumerate(windows)]
        answer = join_windows(found, context, self.tokenizer)
        return {"output": answer.text, "start": answer.start, "margin": answer.margin}
