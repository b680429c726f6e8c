"""The library that TensorRT-RTX's parser looks for: with it, and without it, in other processes."""

import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from runtime.errors import UnsupportedError
from runtime.plugins import library

ROOT = Path(__file__).resolve().parents[3]

PARSE = """
import tensorrt_rtx as trt
from onnx import TensorProto, helper
from runtime.plugins.classes import make_creators, register_plugins
from runtime.plugins.driver import load_driver
from runtime.plugins.fields import fields_from_launch
from tests.runtime.plugins.fake_cuda import make_launch
registry = trt.get_plugin_registry()
{call}
types = (TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.INT32)
types += (TensorProto.INT8, TensorProto.FLOAT16)
inputs = [helper.make_tensor_value_info(f"in{{i}}", kind, [2]) for i, kind in enumerate(types)]
output = helper.make_tensor_value_info("out", TensorProto.FLOAT16, [2, 3, 70])
names = [value.name for value in inputs]
fields = fields_from_launch(make_launch())._asdict()
fields |= {{"domain": "kimivl", "plugin_namespace": "kimivl"}}
node = helper.make_node("GroupedUp", names, ["out"], **fields)
graph = helper.make_graph([node], "graph", inputs, [output])
opsets = [helper.make_opsetid("", 24), helper.make_opsetid("kimivl", 1)]
model = helper.make_model(graph, opset_imports=opsets)
builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
network = builder.create_network(0)
parser = trt.OnnxParser(network, builder.logger)
assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
print(network.get_layer(0).type.name, *network.get_output(0).shape)
"""


def parse(call: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("tensorrt_rtx")
    command = [sys.executable, "-c", PARSE.format(call=call)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_parsing_a_plugin_node_is_safe() -> None:
    done = parse("register_plugins(trt); register_plugins(trt)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["PLUGIN_V3", "2", "3", "70"]


def test_without_the_library_the_parser_ends_the_process() -> None:
    # If this fails the wheel was mended, and the library is needed no longer.
    creators = "creators = make_creators(trt, load_driver)"
    done = parse(f"{creators}; [registry.register_creator(one, 'kimivl') for one in creators]")
    assert done.returncode == -signal.SIGABRT


def test_what_cannot_be_made_safe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_WANTED", "libwanted-by-a-test.so")
    monkeypatch.setattr(library, "_PRESENT", "libthat-is-not-there.so.1")
    expected = "libthat-is-not-there.so.1.*; build with --no-plugins, or link it"
    with pytest.raises(UnsupportedError, match=expected):
        library.ensure_plugin_library(ModuleType("tensorrt_rtx"))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UnsupportedError, match="no shared library can be made for riscv64"):
        library.ensure_plugin_library(ModuleType("tensorrt_rtx"))


def test_a_library_without_the_symbol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_WANTED", "libwanted-by-another-test.so")
    monkeypatch.setattr(library, "_PRESENT", "libc.so.6")
    with pytest.raises(UnsupportedError, match="getPluginRegistry is not in it"):
        library.ensure_plugin_library(ModuleType("tensorrt_rtx"))


def test_tensorrt_itself_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_WANTED", "libwanted-by-a-third-test.so")
    monkeypatch.setattr(library, "_PRESENT", "libthat-is-not-there.so.1")
    library.ensure_plugin_library(ModuleType("tensorrt"))
    assert not library._is_found()
