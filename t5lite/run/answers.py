"""Answer texts with a run or with released weights. The verb `generate` prints the answers.

    answerer = open_answerer("runs/tiny")
    for answer in answerer.answers([Request("The <extra_id_0> sat on the mat.")], Options(Settings())):
        answer["output"], answer["logprob"]

answering.py is for all models, generator.py for models that generate text, heads.py for models that answer with a head,
encoder.py for masked language models.
"""

from pathlib import Path
from typing import Any

from t5lite.run.answering import Options
from t5lite.run.encoder import EncoderAnswerer
from t5lite.run.generator import Generator
from t5lite.run.heads import HeadAnswerer
from t5lite.run.released import open_model
from t5lite.run.requests import Request

__all__ = ["EncoderAnswerer", "Generator", "HeadAnswerer", "Options", "Request", "open_answerer"]


def open_answerer(place: str | Path, **arguments: Any) -> Generator | EncoderAnswerer | HeadAnswerer:
    """Return the model of a workdir or of `hf:DIR`, ready to answer. arguments: see `answering.Answerer`."""
    opened = open_model(place)
    objective = opened.objective
    masked = EncoderAnswerer if objective.architecture == "encoder" else Generator
    kind = masked if objective.answer_head is None else HeadAnswerer
    return kind(opened, place, **arguments)
