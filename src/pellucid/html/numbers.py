"""Numbers for people: three significant figures, the interval behind the value, one sign for what is missing."""

import math
from collections.abc import Iterable

Real = float | int | None
"""A number, or None where there is none."""

NOTHING = "–"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_missing(value: Real) -> bool:
    """Whether there is no number to show: None or NaN."""
    return value is None or math.isnan(value)


def number(value: Real, digits: int | None = None) -> str:
    """Three significant figures, or `digits` decimals where a column must line up: `number(0.27368)` is "0.274"."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if digits is not None:
        return _signed(f"{value:,.{digits}f}")
    if value == 0:
        return "0"
    # Rounded first: 999.7 has the size of 1000, not of 999.
    size = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    if size < -3 or size > 6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return _signed(f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}")
    return _signed(f"{float(f'{value:.2e}'):,.{max(0, 2 - size)}f}")


def decimals(values: Iterable[Real]) -> int:
    """Decimals that give the largest of `values` three significant figures, so that a column lines up."""
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes:
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(float(f"{max(sizes):.2e}")))))


def interval(value: Real, low: Real, high: Real, *, digits: int | None = None) -> str:
    """The value with its interval behind it, all to the value's decimals: "0.274 [0.243, 0.301]"."""
    text = number(value, digits)
    if value is None or is_missing(value) or is_missing(low) or is_missing(high):
        return text
    if digits is None:
        # Scientific notation repeats itself in the bounds; decimals are taken from the value.
        digits = None if "×" in text else len(text.partition(".")[2])
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def percent(share: Real, low: Real = None, high: Real = None) -> str:
    """A share in [0, 1] as a percentage, with its interval if there is one: "81.0 % [80.2, 81.8]"."""
    if share is None or is_missing(share):
        return NOTHING
    digits = 0 if share in (0, 1) else 1
    text = f"{number(100 * share, digits)} %"
    if low is None or high is None or is_missing(low) or is_missing(high):
        return text
    return f"{number(100 * share, 1)} % [{number(100 * low, 1)}, {number(100 * high, 1)}]"


def count(n: int) -> str:
    """A number of things: "10,000"."""
    return f"{n:,}"


def counted(n: int, one: str, many: str = "") -> str:
    """A number of things with their name: "1 class", "10,000 images"; `many` where it is not `one` and an s."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def _signed(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") and text.strip("-0.,") else text.removeprefix("-")
