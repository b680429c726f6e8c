"""Placements as ONNX Runtime tells them, and the stand-ins that its provider is loaded over."""

import ctypes
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.gpu import launches, placement
from benchmarks.gpu.launches import read_launches
from benchmarks.gpu.placement import Placement, read_log
from benchmarks.gpu.stand_in import needed, source
from engines.build import build_target
from engines.options import BuildOptions

STATE = "[V:onnxruntime:, session_state.cc:1584 VerifyEachNodeIsAssignedToAnEp]"
TABLE = """
   Num:    Value          Size Type    Bind   Vis      Ndx Name
    12: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cublasLtCreate@libcublasLt.so.13 (5)
    13: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cublasCreate_v2@libcublas.so.13 (6)
    14: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cudaMalloc@libcudart.so.13 (7)
    15: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND __cudaRegisterVar@libcudart.so.13 (7)
    16: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cuTensorMapEncodeTiled
    17: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND curve
    18: 00000000003cbed0   100 FUNC    GLOBAL DEFAULT   14 cudaOfOurs
"""


def test_nodes_are_counted_by_where_they_run() -> None:
    text = f"""
{STATE} Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3
{STATE}   Concat (0.shape)
{STATE}   Concat (1.shape)
{STATE}   Squeeze (0.count)
{STATE} Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 2
{STATE}   MatMul (0.product)
{STATE}   MemcpyToHost (Memcpy_1)
[I] This session will use the graph capture feature as requested by the user
"""
    assert read_log(text) == Placement(
        cuda=2, cpu={"Concat": 2, "Squeeze": 1}, copies=1, is_recorded=True
    )


def test_a_graph_that_runs_in_one_place_is_told_in_one_line() -> None:
    text = f"{STATE} All nodes placed on [CUDAExecutionProvider]. Number of nodes: 7\n"
    assert read_log(text) == Placement(cuda=7, cpu={}, copies=0, is_recorded=False)


def test_functions_are_sorted_by_the_library_that_has_them() -> None:
    found = needed(TABLE)
    assert found == {
        "libcublasLt.so.13": ["cublasLtCreate"],
        "libcublas.so.13": ["cublasCreate_v2"],
        "libcurand.so.10": [],
        "libcudart.so.13": ["__cudaRegisterVar", "cudaMalloc"],
        "libcuda.so.1": ["cuTensorMapEncodeTiled"],
    }


def test_a_stand_in_gives_the_hosts_memory_and_succeeds_at_all_else(tmp_path: Path) -> None:
    code, library = tmp_path / "a.c", tmp_path / "a.so"
    code.write_text(source(["cudaMalloc", "cudaFree", "cudaMemset", "cudaStreamSynchronize"]))
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(code)]
    subprocess.run(command, check=True)
    loaded, address = ctypes.CDLL(str(library)), ctypes.c_void_p()
    assert loaded.cudaMalloc(ctypes.byref(address), ctypes.c_long(1000)) == 0
    assert (address.value or 1) % 256 == 0
    assert loaded.cudaMemset(address, ctypes.c_long(7), ctypes.c_long(1000)) == 0
    assert ctypes.string_at(address, 1000) == b"\7" * 1000
    assert loaded.cudaFree(address) == 0
    assert loaded.cudaStreamSynchronize(None) == 0


def test_a_stand_in_tells_what_is_launched_while_it_records(tmp_path: Path) -> None:
    functions = [
        "__cudaRegisterFunction",
        "cudaLaunchKernel",
        "cudaMemcpyAsync",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
    ]
    runtime, products = tmp_path / "runtime.so", tmp_path / "products.so"
    for place, names in ((runtime, functions), (products, ["cublasGemmEx", "cublasSetStream_v2"])):
        code = tmp_path / f"{place.stem}.c"
        code.write_text(source(names))
        command = ["cc", "-shared", "-fPIC", "-w", "-o", str(place), str(code)]
        subprocess.run(command, check=True)
    steps = """
import ctypes, sys
runtime, products = map(ctypes.CDLL, sys.argv[1:])
host, made = ctypes.create_string_buffer(8), ctypes.c_void_p()
for key, name in ((11, b"_ZN4kept3addEv"), (12, b"never")):
    runtime.__getattr__("__cudaRegisterFunction")(0, key, 0, name)
def launch():
    runtime.cudaLaunchKernel(11)
    products.cublasGemmEx(0)
    products.cublasSetStream_v2(0)
    runtime.cudaMemcpyAsync(host, host, ctypes.c_long(4), 0)
launch()
runtime.cudaStreamBeginCapture(0, 0)
launch(), launch()
runtime.cudaStreamEndCapture(0, ctypes.byref(made))
launch()
"""
    command = [sys.executable, "-c", steps, str(runtime), str(products)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert read_launches(told) == {"kept::add": 2, "cublasGemmEx": 2, "cudaMemcpyAsync": 2}


@pytest.mark.parametrize("module", [placement, launches])
def test_without_the_package_the_command_ends_in_one_line(
    module: ModuleType, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(artifact), "--packages", str(tmp_path)]
    assert module.main(words) == 1
    assert "not built for target 'cuda'" in capsys.readouterr().err
    copy = shutil.copytree(artifact, tmp_path / "artifact")
    build_target(copy, "cuda", BuildOptions(max_tokens=64))
    assert module.main([str(copy), *words[1:]]) == 1
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: no onnxruntime-gpu; give its folder by --packages\n"


def test_packages_are_looked_for_where_this_python_has_its_own(
    for_cuda: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = {"purelib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_path", own.__getitem__)
    assert placement.main([str(for_cuda)]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}: no onnxruntime-gpu")
