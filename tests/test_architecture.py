"""The shape of the code: direction of imports, light parts, sizes, no paths of one machine.

Every rule is a function on source text, so that each is also seen to fail on planted text.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("runtime", "export", "engines", "calibration", "commands", "benchmarks", "tests")
OURS = {*PARTS, "tool", "kimivl"}
TOOLKIT = {"runtime", "export", "engines", "calibration"}

# The longest matching row decides.
MAY_IMPORT: dict[str, set[str]] = {
    "runtime": set(),
    "export/graph": {"runtime", "export.graph"},
    "export": {"runtime", "export"},
    "engines": {"runtime", "export.graph", "export.recipe", "engines"},
    "calibration": {"runtime", "export", "calibration"},
    "commands": TOOLKIT | {"commands"},
    "commands/cli_page.py": {"commands", "tool"},
    "tool.py": {"commands"},
    "benchmarks": TOOLKIT | {"commands", "benchmarks"},
    "tests": OURS,
}

TRACING = {"torch", "torchvision", "transformers"}
GRAPHS = {"onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub"}
TERMINAL = {"typer", "rich"}
ORACLES = {"torchvision", "transformers"}  # installed for development only
ENGINE_MAKERS = {"tensorrt", "tensorrt_rtx"}  # absent on most machines

# Every row that matches a file counts.
NEVER_IMPORTS: dict[str, set[str]] = {
    "runtime": TRACING | GRAPHS | TERMINAL,
    "export/graph": TRACING,
    "export": TERMINAL | ORACLES,
    "engines": TERMINAL | ORACLES,
    "calibration": TERMINAL | ORACLES,
    "commands": ORACLES,
    "benchmarks": TERMINAL,
    "tool.py": {"rich"},
}
NOT_WHEN_LOADED: dict[str, set[str]] = {
    **dict.fromkeys(PARTS, ENGINE_MAKERS),
    "commands": ENGINE_MAKERS | TRACING | GRAPHS | {"onnxruntime"},
    "tool.py": ENGINE_MAKERS | TRACING | GRAPHS | {"onnxruntime"},
}

# Targets stand beside each other: what two of them use lies in a place that none of them owns.
APART: dict[str, set[str]] = {
    "engines/cpu": {"engines.cuda", "engines.trt"},
    "engines/cuda": {"engines.cpu", "engines.trt"},
    "engines/trt": {"engines.cpu", "engines.cuda"},
    "engines/passes": {"engines.cpu", "engines.cuda", "engines.trt"},
    "runtime/engine/cpu": {"runtime.engine.cuda", "runtime.engine.gpu", "runtime.engine.trt"},
    "runtime/engine/cuda": {"runtime.engine.cpu", "runtime.engine.trt"},
    "runtime/engine/trt": {"runtime.engine.cpu", "runtime.engine.cuda"},
    "runtime/engine/gpu": {"runtime.engine.cpu", "runtime.engine.cuda", "runtime.engine.trt"},
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40

SKIPPED_FOLDERS = re.compile(r"\.(?!ci$).*|__pycache__|.*\.egg-info")
OUTPUT_FOLDERS = {"out", "build", "dist"}  # at the root
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".json", ".yaml", ".yml", ".sh", ".txt", ".cfg"}
MACHINE_PATH = re.compile(r"(?<![\w.:/*~-])/(?:work|root|home|tmp)/")
MACHINE_PATH_IN_TESTS = re.compile(r"(?<![\w.:/*~-])/(?:work|root|home)/")


class Import(NamedTuple):
    name: str  # absolute, with the imported attribute: "export.graph.passes"
    line: int
    is_relative: bool
    is_when_loaded: bool  # runs as soon as the file is imported

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


class ImportFinder(ast.NodeVisitor):
    """Collects every import of one file, also those inside functions and by `import_module`."""

    def __init__(self, path: str) -> None:
        self.package = path.split("/")[:-1]
        self.is_when_loaded = True
        self.found: list[Import] = []

    def add(self, name: str, node: ast.stmt | ast.expr, *, is_relative: bool = False) -> None:
        self.found.append(Import(name, node.lineno, is_relative, self.is_when_loaded))

    def visit_later(self, nodes: list[ast.stmt] | list[ast.expr]) -> None:
        before, self.is_when_loaded = self.is_when_loaded, False
        for node in nodes:
            self.visit(node)
        self.is_when_loaded = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_later(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_later([node.body])

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            self.visit_later(node.body)
            self.visit_later(node.orelse)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        depth = max(0, len(self.package) + 1 - node.level) if node.level else 0
        module = ".".join([*self.package[:depth], *([node.module] if node.module else [])])
        for alias in node.names:
            self.add(f"{module}.{alias.name}", node, is_relative=node.level > 0)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                self.add(name.value, node)
        self.generic_visit(node)


def find_imports(path: str, source: str) -> list[Import]:
    finder = ImportFinder(path)
    finder.visit(ast.parse(source))
    return finder.found


def is_under(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def wrong_directions(path: str, source: str) -> Iterator[str]:
    place = max((place for place in MAY_IMPORT if is_under(path, place)), key=len)
    for found in find_imports(path, source):
        if place == "runtime" and found.is_relative and found.top == "runtime":
            continue  # runtime is closed: the same folder also works under its name in the wheel
        allowed = any(f"{found.name}.".startswith(f"{name}.") for name in MAY_IMPORT[place])
        if (found.top in OURS or found.is_relative) and not allowed:
            yield f"{path}:{found.line}: {place} must not import {found.name}"


def imports_of_other_targets(path: str, source: str) -> Iterator[str]:
    for place, others in APART.items():
        if not is_under(path, place):
            continue
        for found in find_imports(path, source):
            if any(f"{found.name}.".startswith(f"{other}.") for other in others):
                yield f"{path}:{found.line}: {place} must not import {found.name}"


def forbidden_imports(path: str, source: str) -> Iterator[str]:
    for found in find_imports(path, source):
        for place, forbidden in NEVER_IMPORTS.items():
            if is_under(path, place) and found.top in forbidden:
                yield f"{path}:{found.line}: {place} must not import {found.top}"


def early_imports(path: str, source: str) -> Iterator[str]:
    for found in find_imports(path, source):
        for place, heavy in NOT_WHEN_LOADED.items():
            if is_under(path, place) and found.is_when_loaded and found.top in heavy:
                yield f"{path}:{found.line}: import {found.top} inside the function that needs it"


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def oversizes(path: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, over {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = count_lines(node)
            if lines > MAX_FUNCTION_LINES:
                where = f"{path}:{node.lineno}: {node.name}"
                yield f"{where} has {lines} lines, over {MAX_FUNCTION_LINES}"


def machine_paths(path: str, source: str) -> Iterator[str]:
    """Paths that exist on one machine only; a test may name /tmp as an example of a bad path."""
    pattern = MACHINE_PATH_IN_TESTS if is_under(path, "tests") else MACHINE_PATH
    for number, line in enumerate(source.splitlines(), 1):
        for match in pattern.finditer(line):
            yield f"{path}:{number}: names {match[0]} of one machine"


def read_files() -> dict[str, str]:
    """Every text file of the checkout by its path, without outputs and caches."""
    files = {}
    for folder, folders, names in os.walk(ROOT):
        at_root = Path(folder) == ROOT
        folders[:] = [
            name
            for name in folders
            if not SKIPPED_FOLDERS.fullmatch(name) and not (at_root and name in OUTPUT_FOLDERS)
        ]
        for path in (Path(folder, name) for name in names):
            if path.suffix in TEXT_SUFFIXES:
                files[path.relative_to(ROOT).as_posix()] = path.read_text(errors="replace")
    return files


FILES = read_files()
PYTHON = {path: text for path, text in FILES.items() if path.endswith(".py")}
OURS_ONLY = {path: text for path, text in PYTHON.items() if path.split("/")[0] in MAY_IMPORT}

Rule = Callable[[str, str], Iterator[str]]


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (wrong_directions, OURS_ONLY),
        (imports_of_other_targets, OURS_ONLY),
        (forbidden_imports, OURS_ONLY),
        (early_imports, OURS_ONLY),
        (oversizes, PYTHON),
        (machine_paths, FILES),
    ],
    ids=lambda value: getattr(value, "__name__", "files"),
)
def test_every_file_keeps_the_rule(rule: Rule, files: dict[str, str]) -> None:
    assert [finding for path, text in files.items() for finding in rule(path, text)] == []


def test_the_rules_see_all_kinds_of_files() -> None:
    assert {"Makefile", ".ci/run", "pyproject.toml", "README.md", "CONTRIBUTING.md"} <= set(FILES)
    assert {"runtime/errors.py", "tool.py", "tests/test_architecture.py"} <= set(OURS_ONLY)
    assert {path.split("/")[0] for path in OURS_ONLY} >= {"export", "engines", "commands"}
    assert {place for place in APART for path in OURS_ONLY if is_under(path, place)} == set(APART)


LATE = "def f():\n    {}\n"
LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
DOCUMENTED = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * (
    MAX_FUNCTION_LINES - 1
)

PLANTED: list[tuple[Rule, str, str]] = [
    (wrong_directions, "runtime/cache.py", "from export.graph import passes"),
    (wrong_directions, "runtime/cache.py", "from runtime.errors import KimiVLError"),
    (wrong_directions, "runtime/cache.py", "from ..export import graph"),
    (wrong_directions, "runtime/server/app.py", "from ....export import graph"),
    (wrong_directions, "runtime/cache.py", LATE.format("import engines.plan")),
    (wrong_directions, "runtime/cache.py", LATE.format("__import__('export')")),
    (wrong_directions, "export/vision.py", "from engines import plan"),
    (wrong_directions, "export/vision.py", "import kimivl"),
    (wrong_directions, "export/graph/passes.py", "from ..modules import vision"),
    (wrong_directions, "export/graph/passes.py", "from export.modules import vision"),
    (wrong_directions, "engines/plan.py", "from export import modules"),
    (wrong_directions, "engines/plan.py", "import export"),
    (wrong_directions, "engines/plan.py", "from export.graph_modules import vision"),
    (wrong_directions, "engines/plan.py", "from calibration import scales"),
    (wrong_directions, "calibration/scales.py", "from engines import plan"),
    (wrong_directions, "commands/run.py", "from tests import doubles"),
    (wrong_directions, "commands/run.py", "from tool import app"),
    (wrong_directions, "tool.py", "from runtime import Session"),
    (imports_of_other_targets, "engines/cuda/costs.py", "from ..cpu.kept import Form"),
    (imports_of_other_targets, "runtime/engine/cuda/engine.py", "from ..trt.plan import Plan"),
    (imports_of_other_targets, "runtime/engine/gpu/engine.py", "from ..cuda import cache"),
    (imports_of_other_targets, "engines/cuda/passes/best.py", "from ...trt.passes import bodies"),
    (imports_of_other_targets, "engines/cpu/build.py", LATE.format("from .. import trt")),
    (imports_of_other_targets, "engines/trt/build.py", "import engines.cuda.decoder"),
    (imports_of_other_targets, "engines/passes/blocks.py", "from ..cpu.passes import bodies"),
    (forbidden_imports, "runtime/cache.py", LATE.format("import torch")),
    (forbidden_imports, "runtime/server/app.py", "from onnx import helper"),
    (forbidden_imports, "runtime/cache.py", "importlib.import_module('onnx_ir.passes')"),
    (forbidden_imports, "export/graph/passes.py", LATE.format("import torch.fx")),
    (forbidden_imports, "export/vision.py", LATE.format("import transformers")),
    (forbidden_imports, "engines/plan.py", "import typer"),
    (forbidden_imports, "calibration/report.py", "from rich.table import Table"),
    (forbidden_imports, "tool.py", "import rich"),
    (early_imports, "commands/export.py", "import torch"),
    (early_imports, "tool.py", "try:\n    import onnxruntime\nexcept ImportError:\n    pass"),
    (early_imports, "engines/build.py", "class C:\n    import tensorrt_rtx"),
    (early_imports, "runtime/engine_trt.py", "import tensorrt as trt"),
    (early_imports, "tests/test_build.py", "trt = importlib.import_module('tensorrt')"),
    (oversizes, "engines/plan.py", LONG),
    (oversizes, "engines/plan.py", "class C:\n    async " + LONG.replace("\n", "\n    ")),
    (oversizes, "engines/plan.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (machine_paths, "docs/cli.md", "see `" + "/" + "work/main`"),
    (machine_paths, "export/vision.py", "OUT = '" + "/" + "tmp/out'"),
    (machine_paths, "tests/test_vision.py", "'" + "/" + "home/someone'"),
]

ALLOWED: list[tuple[Rule, str, str]] = [
    (wrong_directions, "runtime/server/app.py", "from ..errors import KimiVLError"),
    (wrong_directions, "export/graph/passes.py", "from runtime.names import DOMAIN"),
    (wrong_directions, "export/vision.py", "from .graph import passes\nimport export.names"),
    (wrong_directions, "engines/plan.py", "from export.graph.passes import fold\nimport numpy"),
    (wrong_directions, "engines/plan.py", "from export import graph"),
    (wrong_directions, "calibration/scales.py", "from export.modules import vision"),
    (wrong_directions, "commands/cli_page.py", LATE.format("from tool import app")),
    (imports_of_other_targets, "engines/cuda/build.py", "from ..passes.blocks import BlockCodes"),
    (imports_of_other_targets, "engines/cpu/passes/mixture.py", "from ..kept import Form"),
    (imports_of_other_targets, "engines/plan.py", "from .cpu.costs import cpu_costs"),
    (forbidden_imports, "engines/plan.py", "import onnx"),
    (forbidden_imports, "commands/output.py", "import rich, typer"),
    (forbidden_imports, "runtime/triton/model.py", "import triton_python_backend_utils"),
    (early_imports, "commands/export.py", LATE.format("import torch")),
    (early_imports, "engines/build.py", "if TYPE_CHECKING:\n    import tensorrt"),
    (early_imports, "engines/build.py", "async " + LATE.format("import tensorrt")),
    (early_imports, "export/vision.py", "import torch"),
    (oversizes, "engines/plan.py", DOCUMENTED),
    (oversizes, "engines/plan.py", "x = 1\n" * MAX_FILE_LINES),
    (
        machine_paths,
        "docs/cli.md",
        "out/tmp/x, https://a.org" + "/" + "work/x, " + "~/home/x",
    ),
    (machine_paths, "tests/test_files.py", "'" + "/" + "tmp/outside'"),
]


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_violation_is_found_once(rule: Rule, path: str, source: str) -> None:
    findings = list(rule(path, source))
    assert len(findings) == 1
    assert findings[0].startswith(path)


@pytest.mark.parametrize(("rule", "path", "source"), ALLOWED)
def test_what_is_allowed_is_not_reported(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, source)) == []


def test_importing_the_runtime_loads_nothing_forbidden() -> None:
    ask = "import sys, runtime; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & NEVER_IMPORTS["runtime"] == set()
