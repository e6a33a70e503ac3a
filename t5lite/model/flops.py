"""Analytic counts: the FLOPs of a training step, and the peak FLOP/s of devices.

A multiply-add is two FLOPs. Only matrix products count, attention's two included. Embedding lookups, norms, softmax
and activations do not count. Attention counts all T · S scores, masked or not, because all are computed. The backward
pass counts twice the forward pass. Work that rematerialisation repeats is not counted, so MFU covers useful work.
"""

from t5lite.model.config import ModelConfig

# Peak FLOP/s of dense bfloat16 products (float16 where a device has no bfloat16), without sparsity. Before v4, a JAX
# device is one core of a TPU, half a chip. Sources: cloud.google.com/tpu/docs (v2 180e12 a board of 4 chips; v3 123e12,
# v4 275e12, v5e 197e12, v5p 459e12, v6e 918e12 a chip); NVIDIA's data sheets of V100 SXM2, T4, L4, L40S, A100, H100 SXM
# and PCIe, H200, B200, halved where they quote sparsity.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the peak FLOP/s of one JAX device by its `device_kind`, for example "NVIDIA H100 80GB HBM3".

    The longest name in the table that begins the kind counts. None for a CPU or an unknown device.
    """
    matches = [name for name in PEAK_FLOPS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def _mlp_kernels(config: ModelConfig) -> int:
    return (3 if config.gated else 2) * config.d_model * config.d_ff


def forward_flops(
    config: ModelConfig, *, batch: int, encoder_length: int = 0, decoder_length: int = 0, predicted: int | None = None
) -> float:
    """Return the FLOPs of computing logits for `batch` examples.

    encoder_length, decoder_length: tokens of a side; only used where the model has that side.
    predicted: number of places in an encoder's inputs that have logits; None: all.
    """
    width_of_queries, width_of_keys = (heads * config.head_dim for heads in (config.num_heads, config.kv_heads))

    def attention(queries: int, keys: int) -> int:
        """Projections of queries and output, of keys and values; scores; the weighted sum of values."""
        projections = 4 * config.d_model * (queries * width_of_queries + keys * width_of_keys)
        return projections + 4 * queries * keys * width_of_queries

    length, width = encoder_length, decoder_length
    encoder = attention(length, length) + 2 * length * _mlp_kernels(config)
    decoder = attention(width, width) + 2 * width * _mlp_kernels(config)
    if config.architecture == "encoder_decoder":
        decoder += attention(width, length)
    predicted = predicted or (width if config.num_decoder_layers else length)
    heads, d_model = config.heads, config.d_model
    outputs = {each: sum(head.size for head in heads.others if head.each == each) for each in ("token", "example")}
    of_a_token = outputs["token"] + config.vocab_size * heads.vocabulary + d_model * config.mlm_transform
    of_an_example = outputs["example"] + d_model * heads.pooled
    logits = 2 * d_model * (predicted * of_a_token + of_an_example)
    return float(batch) * (config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + logits)


def step_flops(config: ModelConfig, **sizes: int | None) -> float:
    """Return the FLOPs of a training step: forward and backward, without the optimizer. sizes: see `forward_flops`."""
    return 3 * forward_flops(config, **sizes)
