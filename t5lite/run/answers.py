"""Answer texts with a run or with released weights. The verb `generate` prints the answers.

    answerer = open_answerer("runs/tiny")
    for answer in answerer.answers([Request("The <extra_id_0> sat on the mat.")], Options(Settings())):
        answer["output"], answer["logprob"]

answering.py is for all models, generator.py for decoders, encoder.py for encoders.
"""

from pathlib import Path
from typing import Any

from t5lite.run.answering import Options
from t5lite.run.encoder import EncoderAnswerer
from t5lite.run.generator import Generator
from t5lite.run.released import open_model
from t5lite.run.requests import Request
from t5lite.system.errors import UserError

__all__ = ["EncoderAnswerer", "Generator", "Options", "Request", "open_answerer"]


def open_answerer(place: str | Path, forced_bos: str | None = None, **arguments: Any) -> Generator | EncoderAnswerer:
    """Return the model of a workdir or of `hf:DIR`, ready to answer.

    Args:
        forced_bos: see `generator.Generator`. Raises UserError for an encoder.
        arguments: see `answering.Answerer`.
    """
    opened = open_model(place)
    if opened.objective.architecture != "encoder":
        return Generator(opened, place, forced_bos=forced_bos, **arguments)
    if forced_bos is not None:
        raise UserError("--forced_bos: an encoder does not generate text; leave it out")
    return EncoderAnswerer(opened, place, **arguments)
