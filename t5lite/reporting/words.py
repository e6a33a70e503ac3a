"""Numbers as people read them: values with as many digits as their interval has, costs with units, and verdicts."""

import dataclasses
import math

from t5lite.progress import duration
from t5lite.reporting.comparison import Comparison
from t5lite.reporting.groups import Cost
from t5lite.reporting.statistics import Estimate

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Metric:
    """label: what people call it; better: the direction of improvement, -1 lower, 1 higher, 0 not known."""

    label: str
    unit: str
    better: int


# In the order in which they are told; those unknown here come last.
METRICS = {
    "accuracy": Metric("accuracy", "", 1),
    "macro_f1": Metric("macro F1", "", 1),
    "exact_match": Metric("exact match", "", 1),
    "loss": Metric("loss", "nats", -1),
    "bits_per_byte": Metric("bits per byte", "bits", -1),
    "token_accuracy": Metric("token accuracy", "", 1),
    "perplexity": Metric("perplexity", "", -1),
}
# Told in tables alone: they say what the loss says.
IN_TABLES_ONLY = ("perplexity", "token_accuracy")


def metric_of(name: str) -> Metric:
    return METRICS.get(name) or Metric(name.replace("_", " "), "", 0)


def told(pair: tuple[str, str]) -> int:
    """The sort key of (split, metric) within a split."""
    return list(METRICS).index(pair[1]) if pair[1] in METRICS else len(METRICS)


def number(value: float, decimals: int, sign: bool = False) -> str:
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def decimals_of(estimate: Estimate) -> int:
    """Digits after the point such that the interval's half width has two significant ones."""
    if estimate.has_spread:
        return _decimals((estimate.high - estimate.low) / 2, 2)
    return _decimals(abs(estimate.mean or 0.0), 3)


def _decimals(value: float, significant: int) -> int:
    return min(max(significant - 1 - math.floor(math.log10(value)), 0), 6) if value > 0 else 3


def mean_text(estimate: Estimate, decimals: int | None = None) -> str:
    """The mean alone, with as many digits as its interval has, or as given."""
    if estimate.mean is None:
        return "not finite"
    return number(estimate.mean, decimals_of(estimate) if decimals is None else decimals)


def range_text(estimate: Estimate, decimals: int | None = None, sign: bool = False) -> str:
    """The interval, "4.71 to 4.90"; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    if not estimate.has_spread:
        return "the same in all seeds"
    decimals = decimals_of(estimate) if decimals is None else decimals
    return f"{number(estimate.low, decimals, sign)} to {number(estimate.high, decimals, sign)}"


def estimate_text(estimate: Estimate, decimals: int | None = None) -> str:
    """The mean and its interval, "4.80 (4.71 to 4.90)"."""
    mean, interval = mean_text(estimate, decimals), range_text(estimate, decimals)
    return f"{mean} ({interval})" if interval else mean


def seeds_text(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def delta_text(comparison: Comparison) -> str:
    """The difference with its sign and unit, "−0.31 nats"."""
    unit = metric_of(comparison.metric).unit
    delta = comparison.delta
    return f"{number(delta.mean or 0.0, decimals_of(delta), sign=True)} {unit}".strip()


def verdict(comparison: Comparison) -> str:
    """What became of b against a: "better", "worse", "not resolved", "not judged".

    Of a metric whose direction is not known, "higher" or "lower".
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
    """Why the verdict is none; empty where it is one."""
    if comparison.delta.resolved:
        return ""
    if comparison.delta.resolved is False:
        return "the interval includes 0"
    return "repeat with more seeds" if comparison.delta.n == 1 else "the seeds show no spread to judge by"


def subject(comparison: Comparison) -> str:
    """What was measured: "loss on validation"."""
    return f"{metric_of(comparison.metric).label} on {comparison.split}"


def around(comparison: Comparison) -> str:
    """How sure the difference is: "95 % interval −0.40 to −0.22, 3 seeds"."""
    delta = comparison.delta
    interval = range_text(delta, sign=True)
    if not interval:
        return f"{seeds_text(delta.n)}, no interval"
    if not delta.has_spread:
        return f"the same with each of {delta.n} seeds"
    return f"95 % interval {interval}, {seeds_text(delta.n)}"


def judged(comparison: Comparison) -> str:
    """The verdict with its reason: "better", "not resolved: the interval includes 0"."""
    why = reason(comparison)
    return f"{verdict(comparison)}: {why}" if why else verdict(comparison)


def sentence(comparison: Comparison) -> str:
    """All of it: "pretrained against scratch, loss on validation: −0.31 nats (95 % interval …, 3 seeds): better." """
    pair = f"{comparison.b} against {comparison.a}"
    measured = f"{subject(comparison)}: {delta_text(comparison)} ({around(comparison)})"
    return f"{pair}, {measured}: {judged(comparison)}."


def count_text(value: float | None, unit: str = "") -> str:
    """1,234,567 as "1.23 M"; with a unit, "1.23 MFLOPs"."""
    if not value:
        return NOTHING
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            if not unit:
                prefix = {"G": "B", "k": "K"}.get(prefix, prefix)
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def tick_text(value: float) -> str:
    """A count as short as it can be: "1.5 M"."""
    text = count_text(value) if value else "0"
    number_of, _, unit = text.partition(" ")
    return f"{float(number_of):g} {unit}".strip()


def _three(value: float) -> str:
    """Three significant digits of a number from 1 to 1,000."""
    return f"{value:.{max(2 - math.floor(math.log10(value)), 0)}f}"


def bytes_text(value: float | None) -> str:
    if not value:
        return NOTHING
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    if not value:
        return NOTHING
    return duration(value) if value >= 10 else f"{value:.1f}s"


def cost_texts(cost: Cost) -> list[str]:
    """Tokens, compute, time, device time, peak memory."""
    return [
        count_text(cost.tokens),
        count_text(cost.flops, "FLOPs"),
        seconds_text(cost.seconds),
        seconds_text(cost.device_seconds),
        bytes_text(cost.peak_bytes),
    ]
