"""Lengths of span corruption: the window that fills the inputs, and the length of its targets."""

from t5lite.objectives.noise import span_counts


def _reference_lengths(window: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Return the lengths (inputs, targets) of a window, with sentinels and EOS. Rounds in float64, halves to even."""
    noise = round(window * noise_density)
    spans = round(noise / mean_noise_span_length)
    return window - noise + spans + 1, noise + spans + 1


def corrupted_lengths(window: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Return the lengths (inputs, targets) that a window really has, from the counts of the noise mask."""
    noise, spans = span_counts(window, noise_density, mean_noise_span_length)
    if noise == 0:
        return window + 1, 2
    return window - noise + spans + 1, noise + spans + 1


def span_corruption_lengths(inputs_length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Return (window, targets length): the largest window whose corrupted inputs fit `inputs_length`.

        span_corruption_lengths(512, 0.15, 3.0) == (568, 114)

    Source: text-to-text-transfer-transformer, `random_spans_helper`, which counts in float64. The noise mask counts in
    float32, so its counts may differ. If the inputs become too long, the window shrinks. If the targets become longer,
    the returned targets length is longer too. So nothing is cut off.
    """
    window = inputs_length - 1
    while _reference_lengths(window + 1, noise_density, mean_noise_span_length)[0] <= inputs_length:
        window += 1
    targets = _reference_lengths(window, noise_density, mean_noise_span_length)[1]
    if noise_density == 0.5 and targets > inputs_length:
        window -= 1
    while corrupted_lengths(window, noise_density, mean_noise_span_length)[0] > inputs_length:
        window -= 1
    return window, corrupted_lengths(window, noise_density, mean_noise_span_length)[1]
