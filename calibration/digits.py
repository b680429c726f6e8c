"""Figures as they are kept in files."""


def six_digits(value: float) -> float:
    """Round to six significant digits: the same on machines that add in another order."""
    return float(f"{value:.6g}")
