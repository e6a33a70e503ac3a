"""The label task: the answer to a whole text is one of the run's labels."""

from t5lite.tasks.task import make_class_task

LABEL = make_class_task(
    "classifier",
    name="label",
    part="classifier",
    each="example",
    metrics=("accuracy", "macro_f1"),
    loss_name="label_loss",
    has_labels=True,
    released={"bert": ("ForSequenceClassification", "classifier")},
)
