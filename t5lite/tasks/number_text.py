"""The number_text task: the answer is a number, written as text by the vocabulary, as T5 answers STS-B.

Training is that of texts. The generated texts are read as numbers and compared with the numbers of the data, as
numbers.py says. `data.train.number_step` rounds the targets, so that there are few different ones: T5 has steps of 0.2
(Raffel et al. 2020, section 2.4).
"""

import dataclasses

from t5lite.tasks.number import NUMBER
from t5lite.tasks.text import TEXT

NUMBER_TEXT = dataclasses.replace(
    TEXT,
    name="number_text",
    data="number_texts",
    architectures=("encoder_decoder", "decoder"),
    text_metrics=(*NUMBER.text_metrics, "not_numbers"),
)
