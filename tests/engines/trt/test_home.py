"""Homes: which package is used, what is said when one is missing, what TensorRT says."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engines.trt.home import NEEDED_POLYGRAPHY, Home
from engines.trt.network import parse_network
from runtime.errors import UnsupportedError

from .graphs import attention, linear

ROOT = Path(__file__).resolve().parents[3]


def test_a_home_names_its_product_and_both_versions(home: Home) -> None:
    assert home.title == f"TensorRT-RTX {home.trt.__version__}"
    assert home.trt.__name__ == "tensorrt_rtx"
    assert tuple(map(int, home.polygraphy_version.split(".")[:2])) >= NEEDED_POLYGRAPHY


def stand_in(version: str) -> ModuleType:
    module = ModuleType("stand_in")
    module.__dict__["__version__"] = version
    return module


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx is not installed.*\.\[plans\]"):
        Home.load("rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnsupportedError, match=r"tensorrt is not installed.*\[plans,trt\]"):
        Home.load("trt")


def test_all_old_packages_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_in("1.6.0.5"))
    monkeypatch.setitem(sys.modules, "polygraphy", stand_in("0.49.26"))
    with pytest.raises(UnsupportedError, match="2 problems") as caught:
        Home.load("rtx")
    assert "tensorrt_rtx is 1.6.0.5, 1.7 or newer is needed" in str(caught.value)
    assert "polygraphy is 0.49.26, 0.53 or newer is needed" in str(caught.value)


def test_one_process_builds_in_one_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in("11.4.0"))
    with pytest.raises(UnsupportedError, match="in a process of its own"):
        Home.load("trt")
    assert Home.load("rtx") == home  # the refusal left Polygraphy as it was


def test_loading_a_home_does_not_depend_on_the_environment() -> None:
    ask = "from engines.trt.home import Home; print(Home.load('rtx').trt.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=ROOT,
        env={"POLYGRAPHY_USE_TENSORRT_RTX": "0", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tensorrt_rtx\n"


def test_a_warning_is_heard_every_time(home: Home, tmp_path: Path) -> None:
    graph = attention(tmp_path, 64).read_bytes()
    heard = []
    for index in range(2):
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(graph)
        heard.append([one.severity for one in parse_network(home, path).messages])
    assert heard[0] == heard[1]
    assert heard[0]


def test_collecting_ends_with_its_block(home: Home, tmp_path: Path) -> None:
    with home.collecting() as outer, home.collecting() as inner:
        parse_network(home, linear(tmp_path))
    assert inner == outer
    before = len(outer)
    parse_network(home, linear(tmp_path))
    assert len(outer) == before > 0


def test_nothing_is_printed_by_polygraphy(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parse_network(home, linear(tmp_path))
    assert capsys.readouterr().out == ""
