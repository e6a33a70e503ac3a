"""Numbers as text: values with the digits that their interval justifies, costs with units, and verdicts."""

import dataclasses
import math
import unicodedata
from collections.abc import Mapping

from t5lite.reporting.comparison import Comparison
from t5lite.reporting.costs import Cost
from t5lite.reporting.statistics import FEWEST_SEEDS, Estimate
from t5lite.system.progress import duration
from t5lite.tasks.metrics import find_metric

NOTHING = "–"
MOST_DECIMALS = 6
LARGE = 1e6  # larger values are shown in powers of ten
# Characters that change the direction of the text after them.
BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a sentence.

    role: "delta", "interval" or "verdict", if a renderer shows the part in a different style; else empty.
    """

    text: str
    role: str = ""


def printable(text: str) -> str:
    """Return `text` on one line, without characters that a page cannot hold or that change the direction of text."""
    text = "".join(" " if character.isspace() else character for character in text)
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs") and c not in BIDIRECTIONAL)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Return `value` with `decimals` decimals, or in powers of ten if it is very large or very small."""
    sign_flag = "+" if sign else ""
    text = f"{value:{sign_flag}.{decimals}f}"
    vanishes = value != 0 and float(text) == 0
    if abs(value) >= LARGE or (vanishes and decimals >= MOST_DECIMALS):
        mantissa, _, exponent = f"{value:{sign_flag}.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    elif float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def count_decimals(estimate: Estimate) -> int:
    """Return the number of decimals with which half the width of the interval has two significant digits.

    Without a width: the number of decimals with which the mean has three significant digits.
    """
    if estimate.has_spread:
        return _count_decimals((estimate.high - estimate.low) / 2, 2)
    return _count_decimals(abs(estimate.mean or 0.0), 3)


def delta_decimals(delta: Estimate) -> int:
    """Return the number of decimals for a difference. If the interval excludes 0, no end of it is shown as 0."""
    if not (delta.has_spread and delta.resolved):
        return count_decimals(delta)
    return max(count_decimals(delta), *(_count_decimals(abs(end), 1) for end in (delta.low, delta.high)))


def _count_decimals(value: float, significant: int) -> int:
    return min(max(significant - 1 - math.floor(math.log10(value)), 0), MOST_DECIMALS) if value > 0 else 3


def mean_text(estimate: Estimate, decimals: int | None = None) -> str:
    """Return the mean without its interval. decimals: None: as many as the interval justifies."""
    if estimate.mean is None:
        return "not finite"
    return number(estimate.mean, count_decimals(estimate) if decimals is None else decimals)


def range_text(estimate: Estimate, decimals: int | None = None, sign: bool = False) -> str:
    """Return the interval, "4.71 to 4.90"; "" if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if not estimate.has_spread:
        return "the same in all seeds"
    decimals = count_decimals(estimate) if decimals is None else decimals
    return f"{number(estimate.low, decimals, sign)} to {number(estimate.high, decimals, sign)}"


def estimate_text(estimate: Estimate, decimals: int | None = None) -> str:
    """Return the mean and its interval, "4.80 (4.71 to 4.90)"."""
    mean, interval = mean_text(estimate, decimals), range_text(estimate, decimals)
    return f"{mean} ({interval})" if interval else mean


def seeds_text(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def delta_number(comparison: Comparison) -> str:
    """Return the difference with its sign, "−0.31"."""
    return number(comparison.delta.mean or 0.0, delta_decimals(comparison.delta), sign=True)


def delta_text(comparison: Comparison) -> str:
    """Return the difference with its sign and unit, "−0.31 nats"."""
    return f"{delta_number(comparison)} {find_metric(comparison.metric).unit}".strip()


def delta_range(comparison: Comparison) -> str:
    """Return the interval of the difference, "−0.40 to −0.22"; "" if there is none."""
    return range_text(comparison.delta, delta_decimals(comparison.delta), sign=True)


def judge(comparison: Comparison) -> tuple[str, str]:
    """Return (verdict on b compared with a, reason if no verdict is possible, else "").

    The verdict is "better", "worse", "not resolved" or "not judged"; for a metric without a known direction, "higher"
    or "lower".
    """
    delta = comparison.delta
    if delta.resolved is None:
        few = delta.n < FEWEST_SEEDS
        return "not judged", f"a verdict needs {FEWEST_SEEDS} seeds" if few else "all seeds have the same difference"
    if not delta.resolved:
        return "not resolved", "the interval includes 0"
    direction, rises = find_metric(comparison.metric).better, (delta.mean or 0.0) > 0
    if direction == 0:
        return "higher" if rises else "lower", ""
    return "better" if rises == (direction > 0) else "worse", ""


def verdict(comparison: Comparison) -> str:
    """Return the verdict without the reason."""
    return judge(comparison)[0]


def interval_text(comparison: Comparison) -> str:
    """Return the interval and the number of seeds: "95 % interval −0.40 to −0.22, 3 seeds"."""
    interval, delta = delta_range(comparison), comparison.delta
    if not interval:
        return f"{seeds_text(delta.n)}, no interval"
    return (
        f"95 % interval {interval}, {seeds_text(delta.n)}"
        if delta.has_spread
        else f"the same with each of {delta.n} seeds"
    )


def sentence_parts(comparison: Comparison) -> list[Part]:
    """Return the parts of "loss on validation: −0.31 nats (95 % interval −0.40 to −0.22, 3 seeds): better."."""
    verdict_text, reason = judge(comparison)
    return [
        Part(f"{find_metric(comparison.metric).label} on {comparison.split}: "),
        Part(delta_text(comparison), "delta"),
        Part(" "),
        Part(f"({interval_text(comparison)})", "interval"),
        Part(": "),
        Part(verdict_text, "verdict"),
        Part(f": {reason}." if reason else "."),
    ]


def sentence(comparison: Comparison) -> str:
    """Return the sentence with the names of both groups first: "pretrained against scratch, loss on validation: …"."""
    return f"{comparison.b} against {comparison.a}, {''.join(part.text for part in sentence_parts(comparison))}"


PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
COUNTS = {{"G": "B", "k": "K"}.get(prefix, prefix): size for prefix, size in PREFIXES.items()}
BYTES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def _scale(value: float | None, scales: Mapping[str, float], unit: str = "") -> str:
    """Return `value` with three significant digits and a prefix. scales: {prefix: size}, the largest first."""
    if value is None:
        return NOTHING
    for prefix, size in scales.items():
        if value >= size:
            scaled = value / size
            return f"{scaled:.{max(2 - math.floor(math.log10(scaled)), 0)}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def count_text(value: float | None, unit: str = "") -> str:
    """Return 1,234,567 as "1.23 M"; with a unit, as "1.23 MFLOPs"."""
    return _scale(value, PREFIXES if unit else COUNTS, unit)


def tick_text(value: float) -> str:
    """Return a count as short as possible: "1.5 M"."""
    scaled, _, unit = count_text(value).partition(" ")
    return f"{float(scaled):g} {unit}".strip()


def bytes_text(value: float | None) -> str:
    return _scale(value, BYTES) if value is None or value >= 2**10 else f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return duration(value) if value >= 10 or value == 0 else f"{value:.1f}s"


def cost_texts(cost: Cost) -> list[str]:
    """Return the texts of tokens, compute, time, device time and peak memory."""
    times = [seconds_text(cost.seconds), seconds_text(cost.device_seconds)]
    return [count_text(cost.tokens), count_text(cost.flops, "FLOPs"), *times, bytes_text(cost.peak_bytes)]
