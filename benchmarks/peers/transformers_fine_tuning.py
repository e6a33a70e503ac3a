"""The peer of benchmarks/fine_tuning.py: fine-tuning and scoring of labels with transformers, in float32.

    python benchmarks/fine_tuning.py --peer 'PYTHON benchmarks/peers/transformers_fine_tuning.py'

Needs PyTorch and transformers. `--work FILE` names a JSON file with the shapes and the batches, as tokens. A line on
stdin names a task. The answer is a JSON line with the seconds and the number of examples. Batches are padded to their
longest text, as the usual collators do, and AdamW makes a step for each batch.
"""

import argparse
import functools
import json
import os
import sys
import time

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

IGNORED = -100  # the label of padding, which has no loss


def make_t5(shape):
    config = T5Config(
        d_model=shape["d_model"], d_ff=shape["d_ff"], num_layers=shape["layers"], num_heads=shape["num_heads"],
        d_kv=shape["head_dim"], vocab_size=shape["vocab_size"], feed_forward_proj="gated-gelu",
        tie_word_embeddings=True, dropout_rate=shape["dropout"], decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def make_bert(shape):
    config = BertConfig(
        hidden_size=shape["d_model"], intermediate_size=shape["d_ff"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["num_heads"], vocab_size=shape["vocab_size"], num_labels=shape["labels"],
        max_position_embeddings=shape["max_positions"], hidden_dropout_prob=shape["dropout"],
        attention_probs_dropout_prob=shape["dropout"],
    )  # fmt: skip
    return BertForSequenceClassification(config)


def pad(rows, value=0):
    """Return the rows as one tensor, padded to the longest row."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collate(batch):
    """Return the arguments of the model for a batch {"inputs": rows of tokens, "targets": rows of tokens or labels}."""
    targets = batch["targets"]
    labels = pad(targets, IGNORED) if isinstance(targets[0], list) else torch.tensor(targets)
    mask = pad([[1] * len(row) for row in batch["inputs"]])
    return {"input_ids": pad(batch["inputs"]), "attention_mask": mask, "labels": labels}


def train(model, optimizer, batches):
    for batch in batches:
        model(**collate(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def score_labels(model, labels, batches):
    """Score each label with its own full forward pass, and choose the label with the largest log-probability."""
    for batch in batches:
        scores = []
        for label in labels:
            arguments = collate({"inputs": batch["inputs"], "targets": [label] * len(batch["inputs"])})
            logprobs = model(**arguments).logits.log_softmax(-1)
            scores.append(logprobs.gather(-1, arguments["labels"][..., None]).sum((1, 2)))
        torch.stack(scores).argmax(0).tolist()


def prepare(task):
    """Return the function that does the task's work for some batches."""
    torch.manual_seed(0)
    model = {"t5": make_t5, "bert": make_bert}[task["model"]](task["shape"])
    if "labels" in task:
        return functools.partial(score_labels, model.eval(), task["labels"])
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, fused=True)
    return functools.partial(train, model, optimizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    with open(parser.parse_args().work) as file:
        tasks = json.load(file)
    torch.set_num_threads(os.cpu_count())
    runs = {name: prepare(task) for name, task in tasks.items()}
    for name, run in runs.items():
        run(tasks[name]["batches"][:1])  # the first time is slower
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        start = time.perf_counter()
        runs[name](tasks[name]["batches"])
        seconds = time.perf_counter() - start
        examples = sum(len(batch["inputs"]) for batch in tasks[name]["batches"])
        print(json.dumps({"seconds": seconds, "examples": examples}), flush=True)


if __name__ == "__main__":
    main()
