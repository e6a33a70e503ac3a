"""The label task: the answer to a whole text is one of the run's labels."""

import jax

from t5lite.tasks.task import make_class_task

LABEL = make_class_task(
    "classifier",
    name="label",
    part="classifier",
    each="example",
    metrics=(
        *("accuracy", "positive_f1", "macro_f1", "matthews"),
        *("calibration_error", "brier"),
        *("majority_accuracy", "majority_macro_f1", "most_chosen"),
    ),
    loss_name="label_loss",
    probabilities=jax.nn.softmax,
    has_labels=True,
    released={"bert": ("ForSequenceClassification", "classifier")},
)
