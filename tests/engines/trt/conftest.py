import pytest

from engines.trt.home import Home


@pytest.fixture(scope="session")
def home() -> Home:
    return Home.load("rtx")
