"""`doctor`: each check on texts of other machines, and the verdict as a whole."""

import json
from dataclasses import replace

import pytest

from engines import doctor
from runtime.cores import Cores

from .conftest import Tool

CORES = Cores(allowed=4, physical=2, quota=None)


def test_this_machine_runs_the_tool(tool: Tool) -> None:
    table, listed = tool("doctor"), tool("doctor", "--json")
    assert (table.status, table.stderr, listed.status) == (0, "", 0)
    findings = json.loads(listed.stdout)
    names = {finding["name"] for finding in findings}
    assert {"python", "cores", "memory", "disk", "onnxruntime", "torch", "tensorrt"} <= names
    assert {finding["level"] for finding in findings} <= {"ok", "warn"}
    assert table.stdout.splitlines()[0].split() == ["level", "name", "value", "advice"]


def test_a_failed_check_is_an_error_after_the_table(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [doctor.check_onnxruntime("1.22.0"), doctor.check_cores(4, CORES)]
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    done = tool("doctor")
    assert done.status == 1
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr.startswith(
        "error: this machine: 1 problem: onnxruntime: 1.22.0; pip install"
    )


@pytest.mark.parametrize(
    ("finding", "level", "value"),
    [
        (doctor.check_python((3, 10, 9)), "fail", "3.10.9"),
        (doctor.check_python((3, 14, 0)), "ok", "3.14.0"),
        (
            doctor.check_cores(8, CORES),
            "ok",
            "4 allowed of 8; 2 threads: one for each of 2 physical cores",
        ),
        (doctor.check_cores(8, replace(CORES, quota=1.5)), "ok", "1 thread: a quota of 1.5 cores"),
        (doctor.check_instructions("flags : fpu avx2 avx_vnni\n"), "ok", "AVX2, VNNI"),
        (doctor.check_instructions("flags\t\t: fpu sse4_2\n"), "warn", "none of AVX2"),
        (doctor.check_instructions("Features : asimd\n"), "warn", "not x86"),
        (doctor.check_memory("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n"), "ok", "6 GB"),
        (doctor.check_memory("MemTotal: 8000000 kB\nMemAvailable: 900000 kB\n"), "warn", "1 GB"),
        (doctor.check_memory(""), "warn", "unknown"),
        (doctor.check_disk(10**9), "warn", "1 GB free here"),
        (doctor.check_disk(10**12), "ok", "1000 GB free here"),
        (doctor.check_huge_pages("always [madvise] never\n"), "ok", "madvise"),
        (doctor.check_onnxruntime(None), "fail", "not installed"),
        (doctor.check_onnxruntime("1.29.3"), "fail", "1.29.3"),
        (doctor.check_onnxruntime("1.30.0"), "ok", "1.30.0"),
        (doctor.check_onnxruntime("2.0"), "ok", "2.0"),
        (doctor.check_package("torch", None, "do", is_needed=True), "warn", "not installed"),
        (doctor.check_package("tensorrt", None, "do", is_needed=False), "ok", "not installed"),
        (doctor.check_gpu("NVRM version: NVIDIA Module  580.12.01  x\n"), "ok", "driver 580.12.01"),
    ],
)
def test_a_check_judges_what_it_reads(finding: doctor.Finding, level: str, value: str) -> None:
    assert finding.level == level
    assert value in finding.value
    assert finding.advice or level == "ok"


def test_a_provider_that_does_not_load_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    finding = doctor.check_providers()
    assert finding.level == "fail"
    assert finding.value.startswith("does not load: ")


def test_an_onnx_runtime_that_target_cuda_does_not_run_on_is_warned_about() -> None:
    alone = doctor.check_cuda_provider("1.31.1", None)
    assert (alone.level, alone.value, alone.advice) == ("ok", "1.31.1", "")
    both = doctor.check_cuda_provider("1.31.1", "1.32.0")
    assert (both.level, both.value) == ("warn", "1.31.1, and onnxruntime 1.32.0 in the same folder")
    assert "pip uninstall onnxruntime" in both.advice
    old = doctor.check_cuda_provider("1.30.4", None)
    assert (old.level, old.value) == ("warn", "1.30.4")
    assert "onnxruntime-gpu>=1.31" in old.advice
    missing = doctor.check_cuda_provider(None, "1.32.0")
    assert (missing.level, missing.value) == ("ok", "not installed")
    assert "pip install -e '.[cuda]'" in missing.advice
