"""Numbers as people read them: three significant digits, and never rounded up to a whole."""

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPACE = "\u00a0"
_NOT_FINITE = "not finite"
_PLAIN_FROM = 1e-4
_MOST_DIGITS = 12
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def number(value: float) -> str:
    """Write `0.0123`, `12.3`, `1.23·10⁻⁶`."""
    if not math.isfinite(value):
        return _NOT_FINITE
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.2e}".partition("e")
    power = int(exponent)
    if abs(value) < _PLAIN_FROM or power > 5:
        return f"{digits}·10{str(power).translate(_SUPERSCRIPT)}"
    return f"{value:,.{max(0, 2 - power)}f}"


def percent(share: float) -> str:
    """Write a share as `99.9 %`; as `100 %` only if it is all, as `0 %` only if it is nothing."""
    if share in (0, 1):
        return limit_percent(share)
    if not math.isfinite(share):
        return _NOT_FINITE
    digits = 3
    while share < 1 and float(f"{100 * share:.{digits}g}") >= 100 and digits < _MOST_DIGITS:
        digits += 1
    text = f"{100 * share:#.{digits}g}" if digits > 3 else number(100 * share)
    return f"{text}{_SPACE}%"


def limit(value: float) -> str:
    """Write a number that someone chose: as it was given."""
    return f"{value:g}"


def limit_percent(share: float) -> str:
    """Write a share that someone chose, as `95 %`."""
    return f"{100 * share:g}{_SPACE}%"


def count(value: int) -> str:
    """Write a whole number with its thousands apart."""
    return f"{value:,}"


def size(num_bytes: float) -> str:
    """Write bytes as `12.3 MB`."""
    power = 0
    while num_bytes >= 1000 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{number(num_bytes)}{_SPACE}{_UNITS[power]}"


def several(value: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun: `1 token`, `2 tokens`."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"
