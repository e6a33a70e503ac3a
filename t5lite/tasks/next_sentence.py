"""The next-sentence task: does the second part of a text follow the first? (BERT, ALBERT)."""

from t5lite.objectives.masked_lm import NEXT_SENTENCE as HEAD
from t5lite.tasks.task import make_class_task

NEXT_SENTENCE = make_class_task(
    HEAD.name,
    name="next sentence",
    part="head for the next sentence",
    each=HEAD.each,
    metrics=("next_sentence_accuracy", "next_sentence_negatives"),
    loss_name="next_sentence_loss",
    names=("follows", "does not follow"),  # class 0, class 1
    dropout=HEAD.dropout,
    released={"bert": ("ForPreTraining", "cls.seq_relationship")},
)
