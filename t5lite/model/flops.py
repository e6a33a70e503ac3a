"""Analytic counts: the FLOPs of a training step, and the peak FLOP/s of devices.

A multiply-add is two FLOPs. Only matrix products are counted, the two products of attention included. Embedding
lookups, norms, softmax and activations are not counted. All T · S scores of attention are counted, because masked
scores are computed too. The backward pass has twice the FLOPs of the forward pass. Work that rematerialisation repeats
is not counted, so MFU measures useful work.
"""

from t5lite.model.config import ModelConfig

# Peak FLOP/s of dense bfloat16 products, without sparsity; of float16 products if a device has no bfloat16. Before v4,
# a JAX device is one core of a TPU, half a chip. Sources: cloud.google.com/tpu/docs (v2 180e12 a board of 4 chips; v3
# 123e12, v4 275e12, v5e 197e12, v5p 459e12, v6e 918e12 a chip); NVIDIA's data sheets of V100 SXM2, T4, L4, L40S, A100,
# H100 SXM and PCIe, H200, B200, halved if they include sparsity.
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

    If several names in the table are prefixes of the kind, the longest name is used. None for a CPU or an unknown
    device.
    """
    matches = [name for name in PEAK_FLOPS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def _count_mlp_weights(config: ModelConfig) -> int:
    return (3 if config.gated else 2) * config.d_model * config.d_ff


def forward_flops(
    config: ModelConfig, *, batch: int, encoder_length: int = 0, decoder_length: int = 0, predicted: int | None = None
) -> float:
    """Return the FLOPs of computing logits for `batch` examples.

    encoder_length, decoder_length: the number of tokens that the encoder and the decoder read. A length is not used if
    the model lacks this stack.
    predicted: the number of an encoder's tokens that have logits. None: all tokens.
    """
    width_of_queries, width_of_keys = (heads * config.head_dim for heads in (config.num_heads, config.kv_heads))

    def count_attention(queries: int, keys: int) -> int:
        """Count the projections of queries, keys, values and output, the scores, and the weighted sum of values."""
        projections = 4 * config.d_model * (queries * width_of_queries + keys * width_of_keys)
        return projections + 4 * queries * keys * width_of_queries

    encoder = count_attention(encoder_length, encoder_length) + 2 * encoder_length * _count_mlp_weights(config)
    decoder = count_attention(decoder_length, decoder_length) + 2 * decoder_length * _count_mlp_weights(config)
    if config.architecture == "encoder_decoder":
        decoder += count_attention(decoder_length, encoder_length)
    predicted = predicted or (decoder_length if config.num_decoder_layers else encoder_length)
    heads, d_model = config.heads, config.d_model
    outputs = {each: sum(head.size for head in heads.others if head.each == each) for each in ("token", "example")}
    outputs_per_token = outputs["token"] + config.vocab_size * heads.vocabulary + d_model * config.mlm_transform
    outputs_per_example = outputs["example"] + d_model * (heads.pooled and config.num_encoder_layers > 0)
    logits = 2 * d_model * (predicted * outputs_per_token + outputs_per_example)
    return float(batch) * (config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + logits)


def step_flops(config: ModelConfig, **sizes: int | None) -> float:
    """Return the FLOPs of a training step: forward and backward, without the optimizer. sizes: see `forward_flops`."""
    return 3 * forward_flops(config, **sizes)
