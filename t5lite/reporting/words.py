"""Numbers in readable form: values with as many digits as their interval justifies, costs with units, and verdicts."""

import dataclasses
import math
import unicodedata

from t5lite.reporting.comparison import Comparison
from t5lite.reporting.costs import Cost
from t5lite.reporting.statistics import FEWEST_SEEDS, Estimate
from t5lite.system.progress import duration
from t5lite.tasks.metrics import metric_of

NOTHING = "–"
MOST_DECIMALS = 6
LARGE = 1e6  # larger values are shown in powers of ten
# Characters that change the direction of the text after them.
BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a sentence.

    role: "delta", "interval" or "verdict", for parts that a renderer shows in a different style; else empty.
    """

    text: str
    role: str = ""


def printable(text: str) -> str:
    """Return `text` on one line, without characters that a page cannot hold or that change the text around them."""
    text = "".join(" " if character.isspace() else character for character in text)
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs") and c not in BIDIRECTIONAL)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Return `value` with so many decimals; in powers of ten where it has too many digits before or after the point."""
    sign_flag = "+" if sign else ""
    text = f"{value:{sign_flag}.{decimals}f}"
    vanishes = value != 0 and float(text) == 0
    if abs(value) >= LARGE or (vanishes and decimals >= MOST_DECIMALS):
        mantissa, _, exponent = f"{value:{sign_flag}.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    elif float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def decimals_of(estimate: Estimate) -> int:
    """Return the number of decimals that shows half the width of the interval with two significant digits.

    Without a width, it shows the mean with three significant digits.
    """
    if estimate.has_spread:
        return _decimals((estimate.high - estimate.low) / 2, 2)
    return _decimals(abs(estimate.mean or 0.0), 3)


def delta_decimals(delta: Estimate) -> int:
    """Return the decimals for a difference. Where the interval excludes 0, neither of its ends is shown as 0."""
    if not (delta.has_spread and delta.resolved):
        return decimals_of(delta)
    return max(decimals_of(delta), *(_decimals(abs(end), 1) for end in (delta.low, delta.high)))


def _decimals(value: float, significant: int) -> int:
    return min(max(significant - 1 - math.floor(math.log10(value)), 0), MOST_DECIMALS) if value > 0 else 3


def mean_text(estimate: Estimate, decimals: int | None = None) -> str:
    """Return the mean alone, with `decimals` decimals, or with as many as its interval justifies."""
    if estimate.mean is None:
        return "not finite"
    return number(estimate.mean, decimals_of(estimate) if decimals is None else decimals)


def range_text(estimate: Estimate, decimals: int | None = None, sign: bool = False) -> str:
    """Return the interval, "4.71 to 4.90"; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if not estimate.has_spread:
        return "the same in all seeds"
    decimals = decimals_of(estimate) if decimals is None else decimals
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
    return f"{delta_number(comparison)} {metric_of(comparison.metric).unit}".strip()


def delta_range(comparison: Comparison) -> str:
    """Return the interval of the difference, "−0.40 to −0.22"; empty where there is none."""
    return range_text(comparison.delta, delta_decimals(comparison.delta), sign=True)


def verdict(comparison: Comparison) -> str:
    """Return the verdict on b compared with a: "better", "worse", "not resolved", "not judged".

    For a metric without a known direction, the verdict is "higher" or "lower".
    """
    delta = comparison.delta
    if delta.resolved is None:
        return "not judged"
    if not delta.resolved:
        return "not resolved"
    direction = metric_of(comparison.metric).better
    rises = (delta.mean or 0.0) > 0
    if direction == 0:
        return "higher" if rises else "lower"
    return "better" if rises == (direction > 0) else "worse"


def reason(comparison: Comparison) -> str:
    """Return why there is no verdict; empty where there is one."""
    if comparison.delta.resolved:
        return ""
    if comparison.delta.resolved is False:
        return "the interval includes 0"
    if comparison.delta.n < FEWEST_SEEDS:
        return f"a verdict takes {FEWEST_SEEDS} seeds"
    return "the seeds show no spread to judge by"


def interval_text(comparison: Comparison) -> str:
    """Return how sure the difference is: "95 % interval −0.40 to −0.22, 3 seeds"."""
    delta = comparison.delta
    interval = delta_range(comparison)
    if not interval:
        return f"{seeds_text(delta.n)}, no interval"
    if not delta.has_spread:
        return f"the same with each of {delta.n} seeds"
    return f"95 % interval {interval}, {seeds_text(delta.n)}"


def sentence_parts(comparison: Comparison) -> list[Part]:
    """Return the parts of "loss on validation: −0.31 nats (95 % interval −0.40 to −0.22, 3 seeds): better."."""
    why = reason(comparison)
    return [
        Part(f"{metric_of(comparison.metric).label} on {comparison.split}: "),
        Part(delta_text(comparison), "delta"),
        Part(" "),
        Part(f"({interval_text(comparison)})", "interval"),
        Part(": "),
        Part(verdict(comparison), "verdict"),
        Part(f": {why}." if why else "."),
    ]


def sentence(comparison: Comparison) -> str:
    """Return the sentence with the names of both groups first: "pretrained against scratch, loss on validation: …"."""
    said = "".join(part.text for part in sentence_parts(comparison))
    return f"{comparison.b} against {comparison.a}, {said}"


def count_text(value: float | None, unit: str = "") -> str:
    """Return 1,234,567 as "1.23 M"; with a unit, as "1.23 MFLOPs"."""
    if value is None:
        return NOTHING
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            if not unit:
                prefix = {"G": "B", "k": "K"}.get(prefix, prefix)
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def tick_text(value: float) -> str:
    """Return a count as short as possible: "1.5 M"."""
    number_of, _, unit = count_text(value).partition(" ")
    return f"{float(number_of):g} {unit}".strip()


def _three(value: float) -> str:
    """Return a number from 1 to 1,000 with three significant digits."""
    return f"{value:.{max(2 - math.floor(math.log10(value)), 0)}f}"


def bytes_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return duration(value) if value >= 10 or value == 0 else f"{value:.1f}s"


def cost_texts(cost: Cost) -> list[str]:
    """Return the texts of tokens, compute, time, device time and peak memory."""
    return [
        count_text(cost.tokens),
        count_text(cost.flops, "FLOPs"),
        seconds_text(cost.seconds),
        seconds_text(cost.device_seconds),
        bytes_text(cost.peak_bytes),
    ]
