"""The main job of `make run`: is pre-training worth it for a small encoder-decoder? It needs no download.

    python -m t5lite.study --config configs/studies/first_run.py --workdir runs/first_run --parallel 2

pretrain              span corruption on the docstrings of the standard library and installed packages (pydocs/general)
summary_scratch       write the first sentence of a docstring of numpy or scipy from the rest of the docstring
summary_pretrained    the same task from the pre-trained parameters
topic_scratch         name the subpackage of scipy that a docstring stands in
topic_pretrained      the same task from the pre-trained parameters
topic_bag_of_words    the same task with TF-IDF and a linear classifier

Each run except the pre-training is repeated with the seeds 0, 1 and 2. The seeds also choose the labels: 1,500 of the
3,555 pairs of the summaries, 2,000 of the 2,445 of the topics. The study takes about 4 minutes after installing,
on 2 cores of an Intel Xeon. The numbers of steps were chosen for time.

The results are differences to the runs from scratch, with 95 % intervals over the three seeds:

    summaries, nats a target token                          -0.345 (-0.372 to -0.320)
    topics, accuracy                                        -0.05 (-0.26 to +0.20), not resolved
    topics, macro F1                                        -0.04 (-0.13 to +0.14), not resolved
    topics, macro F1 of the bag of words                    +0.37 (+0.19 to +0.57)

With so few steps, the networks have not learned the topics: accuracy 0.46 from scratch, 0.41 after pre-training, and
0.70 for the bag of words. Longer forms of the study; all three have a longer summary_length=128:

    sample_bytes=2000000,pretrain_steps=300
        summaries, nats a target token                      -0.503 (-0.558 to -0.402)
        topics, accuracy                                    -0.14 (-0.29 to -0.04): pre-training hurts
        topics, macro F1 of the bag of words                +0.36 (+0.20 to +0.46)
    sample_bytes=2000000,pretrain_steps=400,summary_steps=80,topic_steps=80
        summaries, nats a target token                      -0.444 (-0.502 to -0.367)
        topics, accuracy                                    +0.06 (-0.06 to +0.26), not resolved
        topics, macro F1 of the bag of words                +0.31 (+0.19 to +0.47)
    sample_bytes=4000000,topic_length=128,pretrain_steps=650,summary_steps=150,topic_steps=150
        summaries, nats a target token                      -0.349 (-0.356 to -0.337)
        topics, accuracy                                    +0.06 (-0.03 to +0.25), not resolved
        topics, macro F1 of the bag of words                +0.12 (+0.02 to +0.22)
        summaries with other seeds, also for pre-training
            (first_seed=3)                                  -0.327 (-0.370 to -0.279)

The table shows what pre-training needed before it helped: 400 steps for each line, one seed, windows of 64 tokens.
"used" says how much the encoder is used: how much the loss grows when every example gets the inputs of another example.
"topic" is the accuracy with 300 labels after 100 steps, with seeds 0 and 1.

| optimizer of the pre-training | loss | used | topic |
|---|---|---|---|
| Muon, rate 1e-2; queries × 0.18 | 4.259 | 0.089 | 0.24, 0.25 |
| the same, weight decay 0.5 | 4.201 | 0.096 | 0.26, 0.24 |
| the same, weight decay 1.0, encoder × 0.3 | 4.227 | 0.081 | 0.25, 0.26 |
| the same, weight decay 2.0 | 4.385 | 0.029 | 0.25, 0.25 |
| the same, encoder × 0.2 | 4.254 | 0.114 | 0.38, 0.41 |
| Muon 3e-3, Adam 9e-3 for all other parameters; queries × 0.18 | 4.247 | 0.097 | 0.33, 0.45 |
| the same, weight decay 0.5 | 4.225 | 0.095 | 0.44, 0.40 |
| Muon 5e-3, Adam 1e-2, weight decay 0.5; queries × 0.18, encoder × 0.3 (as here) | 4.174 | 0.117 | 0.44, 0.43 |

From scratch, the accuracy on topics is 0.51 with 300 labels, so pre-training hurt there. After pre-training with Muon
at 1e-2 on windows of 128, the accuracy is 0.36. If only one part is pre-trained and the rest starts from scratch, the
accuracy is 0.56 for the embedding, 0.37 for the encoder and 0.45 for the decoder. The reason: as long as the decoder
does not use the encoder, the encoder's gradients are mostly noise, but Adam and Muon make steps of full size from them.
The outputs of the layers then drown what the embedding knows. A lower rate for the encoder and weight decay repair much
of this.

Queries start smaller than other kernels by 1 / sqrt(head_dim), because T5 does not scale its scores. After 1,000 steps
at the full rate the scores are about 20, and attention falls on single tokens.

These changes did not help on the topics:

    sentinels around the label as in pre-training    0.35 and 0.39 at the rates 3e-3 and 1e-2; without them 0.36, 0.44
    three times the steps                            0.46
    a noise density of 0.5                           0.26 and 0.38

Keys that start equal to the queries did not change the loss (4.40 with and without).

Pre-training of this size does not help on topics.
"""

from t5lite.config import base_config, parse_arg
from t5lite.studies import repeat


def network(sample_bytes):
    """Return the fields that all runs share: 1.9 million parameters, and an optimizer for few steps."""
    config = base_config()
    config.tokenizer.vocab_size = 4000
    config.tokenizer.sample_bytes = sample_bytes
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.head_dim = 32
    config.model.num_encoder_layers = 2
    config.model.num_decoder_layers = 2
    config.optimizer.name = "muon"
    config.optimizer.adam_rate = 2.0
    config.optimizer.weight_decay = 0.5
    config.schedule.name = "cosine"
    config.schedule.rate = 5e-3
    config.schedule.warmup_steps = 20
    config.eval.rows = 256  # also at the end, so that the study is quick
    config.eval.batch_size = 32
    return config


def pretraining(steps, sample_bytes):
    config = network(sample_bytes)
    config.data.train.source = "pydocs/general"
    config.objective.inputs_length = 64
    config.batch_size = 32
    # See above: queries start small, and the encoder's gradients are mostly noise at first.
    config.optimizer.rate_multipliers = ((".*query.*", 0.18), ("encoder.*", 0.3), (".*", 1.0))
    config.budget.steps = steps
    config.eval.every_steps = config.checkpoint.every_steps = steps // 2
    return config


def task(source, inputs_length, targets_length, steps, labels, sample_bytes):
    config = network(sample_bytes)
    config.data.train.source = source
    config.data.train.limit = labels
    config.objective.name = "supervised"
    config.objective.inputs_length = inputs_length
    config.objective.targets_length = targets_length
    config.objective.pack = False
    config.batch_size = 16
    config.optimizer.rate_multipliers = ((".*query.*", 0.18), (".*", 1.0))
    config.budget.steps = steps
    config.checkpoint.every_steps = 100
    config.eval.every_steps = steps  # before the first step and after the last one
    config.eval.generate_rows = 0
    return config


def get_study(arg=None):
    # first_seed: for a second study, independent of the first
    steps = {"pretrain_steps": 200, "summary_steps": 60, "topic_steps": 60}
    lengths = {"summary_length": 96, "topic_length": 64}
    arg = parse_arg(arg, seeds=3, first_seed=0, sample_bytes=1_000_000, **steps, **lengths)
    sample = arg.sample_bytes
    runs = {}
    for name, config in {
        "summary": task("pydocs/summary_science", arg.summary_length, 32, arg.summary_steps, 1500, sample),
        "topic": task("pydocs/science_topic", arg.topic_length, 8, arg.topic_steps, 2000, sample),
    }.items():
        scratch, pretrained = config, config.copy_and_resolve_references()
        scratch.tokenizer.path = pretrained.init_from = "@pretrain"
        runs |= {f"{name}_scratch": scratch, f"{name}_pretrained": pretrained}
    bag_of_words = runs["topic_scratch"].copy_and_resolve_references()
    bag_of_words.model.architecture = "bag_of_words"
    runs["topic_bag_of_words"] = bag_of_words
    pretrain = pretraining(arg.pretrain_steps, sample)
    pretrain.seed = arg.first_seed
    return {"pretrain": pretrain} | repeat(runs, range(arg.first_seed, arg.first_seed + arg.seeds))
