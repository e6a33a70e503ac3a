"""A small network for any objective and architecture, used by the examples and benchmarks.

    python -m t5lite.train --config configs/tiny.py --workdir runs/tiny
    python -m t5lite.train --config configs/tiny.py:objective=causal_lm --workdir runs/tiny_lm
    python -m t5lite.train --config configs/tiny.py:objective=mlm --workdir runs/tiny_mlm

These commands train 1,000 steps on pydocs/general. On 2 cores a step takes about 1 to 1.5 s.

The next figures are of other runs, by benchmarks/quality_for_time.py: 12 minutes (586 steps) on 21 MB of novels. At
step 500 (11 minutes, 2.5 million tokens) the validation loss is 4.96 nats a target token. The same network in
transformers, with AdamW, is at 5.88 after 12 minutes. Both are single runs; the curves are under benchmarks/results/.

These settings were tried for span corruption and are not used. Most of them were tried on the smaller network of
studies/first_run.py; its docstring has the figures.

    AdamW at 3e-3 and 5e-3                     a loss of 6.39 after 60 steps of this network. Which of the two rates has
                                               this loss was not noted. With the settings below the loss is 5.59 at step
                                               60 of a run of 183 steps
    Muon at 1e-2 without weight decay          better than AdamW, but the layers outgrow the embedding
    batches of 16 and 8 rows instead of the 32
    of first_run.py, with a lower rate         no better for the same number of tokens
    keys that start equal to the queries       no difference

These settings helped: Muon, with a lower rate for the matrices of the layers than for all other parameters; weight
decay of 0.5; 1 / sqrt(head_dim) of the rate for queries, because they start smaller by this factor; 0.3 of the rate for
the encoder, because its gradients are mostly noise at first.
"""

from t5lite.config import base_config, parse_arg
from t5lite.objectives.catalogue import find_kind


def get_config(arg=None):
    arg = parse_arg(arg, architecture="", objective="span_corruption")
    config = base_config()
    config.name = "tiny"
    config.data.train.source = "pydocs/general"
    config.objective.name = arg.objective
    config.objective.inputs_length = 512
    architecture = arg.architecture or find_kind(config.objective).architectures[0]
    config.model.architecture = architecture
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.head_dim = 64
    config.model.num_encoder_layers = 8 if architecture == "encoder" else 4
    config.model.num_decoder_layers = 8 if architecture == "decoder" else 4
    config.tokenizer.vocab_size = 8000
    config.tokenizer.sentinels = 100
    config.batch_size = 8
    config.optimizer.name = "muon"
    config.optimizer.adam_rate = 2.0
    config.optimizer.weight_decay = 0.5
    if architecture == "encoder_decoder":
        config.optimizer.rate_multipliers = ((".*query.*", 0.125), ("encoder.*", 0.3), (".*", 1.0))
    config.schedule.name = "cosine"
    config.schedule.rate = 5e-3
    config.schedule.warmup_steps = 20
    config.schedule.final_fraction = 0.0
    config.budget.steps = 1000
    return config
