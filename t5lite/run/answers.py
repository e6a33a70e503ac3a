"""Answer texts with a run or with released weights. The verb `generate` prints the answers.

    answerer = open_answerer("runs/tiny")
    for answer in answerer.answers([Request("The <extra_id_0> sat on the mat.")], Options(Settings())):
        answer["output"], answer["logprob"]

answering.py is for all models, generator.py for models with a decoder, chat.py for conversations, encoder.py for
encoders.
"""

from pathlib import Path
from typing import Any

from t5lite.run.answering import Options
from t5lite.run.chat import ChatGenerator
from t5lite.run.encoder import EncoderAnswerer
from t5lite.run.generator import Generator
from t5lite.run.released import open_model
from t5lite.run.requests import Request

__all__ = ["ChatGenerator", "EncoderAnswerer", "Generator", "Options", "Request", "open_answerer"]


def open_answerer(place: str | Path, **arguments: Any) -> Generator | EncoderAnswerer:
    """Return the model of a workdir or of `hf:DIR`, ready to answer. arguments: see `answering.Answerer`."""
    opened = open_model(place)
    kind = EncoderAnswerer if opened.objective.architecture == "encoder" else Generator
    kind = kind if opened.chat is None else ChatGenerator
    return kind(opened, place, **arguments)
