"""What is installed is the runtime: the wheel holds `kimivl`, whole, and nothing else."""

import re
import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out", "build", "dist")
LIGHT = {"numpy", "onnxruntime", "pillow", "tiktoken", "jinja2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy, so that the checkout stays clean; built offline."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "checkout", ignore=NOT_COPIED)
    (copy / "runtime" / "planted.so").write_bytes(b"not package data")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture
def names(wheel: Path) -> set[str]:
    return {name for name in ZipFile(wheel).namelist() if not name.endswith("/")}


@pytest.fixture
def metadata(wheel: Path, names: set[str]) -> Message:
    name = next(name for name in names if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(ZipFile(wheel).read(name).decode())


def required_names(metadata: Message) -> set[str]:
    """The packages that every installation brings, without those of the extras."""
    lines: list[str] = metadata.get_all("Requires-Dist", [])
    plain = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line)[0].lower() for line in plain}


def test_the_wheel_holds_kimivl_only(wheel: Path, names: set[str]) -> None:
    version = wheel.name.split("-")[1]
    assert wheel.name == f"kimivl-{version}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in names} == {"kimivl", f"kimivl-{version}.dist-info"}


def test_the_wheel_holds_every_module_of_the_runtime(names: set[str]) -> None:
    folder = ROOT / "runtime"
    modules = {f"kimivl/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheel_is_typed_and_holds_no_tests_or_strays(names: set[str]) -> None:
    assert {"kimivl/py.typed", "kimivl/server/page.html"} <= names
    assert [name for name in names if "test" in name] == []
    assert [name for name in names if name.endswith(".so")] == []


def test_the_wheel_carries_its_licence(names: set[str], metadata: Message) -> None:
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_an_installation_brings_light_packages_only(metadata: Message) -> None:
    assert required_names(metadata) == LIGHT


def test_every_extra_is_named(metadata: Message) -> None:
    assert {"cuda", "trt", "rtx", "tool"} <= set(metadata.get_all("Provides-Extra", []))


def test_a_planted_requirement_is_seen() -> None:
    planted = Message()
    planted["Requires-Dist"] = "torch==2.13.0"
    planted["Requires-Dist"] = "onnx>=1.20; extra == 'tool'"
    planted["Requires-Dist"] = 'numpy (>=1.26) ; python_version < "4"'
    assert required_names(planted) == {"torch", "numpy"}
