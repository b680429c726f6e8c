"""How what is optional gets installed."""


def install_advice(extra: str) -> str:
    """Say how to install an extra of this package, which is in no index."""
    return f"pip install -e '.[{extra}]' in a checkout, else pip install 'WHEEL[{extra}]'"
