"""Answer texts with a run or with released weights. The verb `generate` prints the answers.

    answerer = open_answerer("runs/tiny")
    for answer in answerer.answers([Request("The <extra_id_0> sat on the mat.")], Options(Settings())):
        answer["output"], answer["logprob"]

answering.py is for all models, generator.py for models that generate text, chat.py for conversations, heads.py for
models that answer with a head, encoder.py for masked language models.
"""

from pathlib import Path
from typing import Any

from t5lite.run.answering import Answerer, Options
from t5lite.run.chat import ChatGenerator
from t5lite.run.encoder import EncoderAnswerer
from t5lite.run.generator import Generator
from t5lite.run.heads import HeadAnswerer
from t5lite.run.questions import QuestionAnswerer
from t5lite.run.released import open_model
from t5lite.run.requests import Request
from t5lite.system.errors import UserError
from t5lite.tasks.span import SPAN

__all__ = ["ChatGenerator", "EncoderAnswerer", "Generator", "HeadAnswerer", "Options", "Request", "open_answerer"]


def open_answerer(place: str | Path, forced_bos: str | None = None, **arguments: Any) -> Answerer:
    """Return the model of a workdir or of `hf:DIR`, ready to answer.

    Args:
        forced_bos: see `generator.Generator`. Raises UserError for a model that generates no text.
        arguments: see `answering.Answerer`.
    """
    opened = open_model(place)
    head, architecture = opened.objective.answer_head, opened.objective.architecture
    if head is None and architecture != "encoder":
        generator = Generator if opened.chat is None else ChatGenerator
        return generator(opened, place, forced_bos=forced_bos, **arguments)
    if forced_bos is not None:
        raise UserError("--forced_bos: the model does not generate text; leave it out")
    kind = EncoderAnswerer if head is None else QuestionAnswerer if head.name == SPAN.head else HeadAnswerer
    return kind(opened, place, **arguments)
