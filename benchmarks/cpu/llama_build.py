"""llama.cpp from its Python package's source distribution, built for this machine's CPU.

Every step is skipped when its result is there, and a step that was stopped starts again.
"""

import shutil
import sys
import tarfile
from pathlib import Path

from runtime.errors import KimiVLError
from runtime.files import sha256_of

from .native import compile_program, run_in_background

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VENDORED = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
DRIVER_SOURCE = Path(__file__).with_name("llama_driver.cpp")
TILE_CONFIG = Path(__file__).with_name("tile_config.h")
LIBRARIES = (
    "src/libllama.a",
    "ggml/src/libggml.a",
    "ggml/src/libggml-cpu.a",
    "ggml/src/libggml-base.a",
)
_PARTS_LEFT_OUT = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")


def build_llama(folder: Path, *, jobs: int = 2) -> Path:
    """Download, unpack, configure, make, and link the driver; three minutes on two cores.

    Args:
        folder: gets the archive, `source/`, `build/` and `llama_driver`; half a GB.
        jobs: compilers at a time.

    Returns:
        The driver, a program that `llama_cpp.LlamaCpp` starts.

    Raises:
        UnsupportedError: cmake, make or g++ is missing.
        KimiVLError: a step failed, or the archive is not the one that was tried.
    """
    folder = folder.absolute()
    source = unpack(download(folder), folder / "source")
    build = configure(source, folder / "build")
    run_in_background(["make", "-C", str(build), f"-j{jobs}", "llama"])
    return link_driver(folder)


def download(folder: Path) -> Path:
    """Fetch the source distribution with pip; nothing of it is built or installed.

    Raises:
        KimiVLError: pip failed, or the archive's hash is another.
    """
    archive = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
        run_in_background([*pip, f"{PACKAGE}=={VERSION}", "--dest", str(folder)])
    if (found := sha256_of(archive)) != SHA256:
        raise KimiVLError(f"{archive}: sha256 is {found}, expected {SHA256}: delete the file")
    return archive


def unpack(archive: Path, source: Path) -> Path:
    """Unpack llama.cpp alone."""
    if source.exists():
        return source
    temporary = source.with_name(source.name + ".part")
    if temporary.exists():
        shutil.rmtree(temporary)  # an unpacking that was stopped
    with tarfile.open(archive) as members:
        for member in members:  # filters of `extract` are missing before Python 3.11.4
            content = members.extractfile(member) if member.name.startswith(VENDORED) else None
            if content is not None:
                place = temporary / member.name.removeprefix(VENDORED)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())
                place.chmod(member.mode & 0o755)
    return temporary.rename(source)


def configure(source: Path, build: Path) -> Path:
    """Configure for this CPU, with OpenMP, and nothing but the library."""
    if not (build / "Makefile").exists():
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_FLAGS": f"-include {TILE_CONFIG}",
            "GGML_NATIVE": "ON",
            "GGML_OPENMP": "ON",
            "BUILD_SHARED_LIBS": "OFF",
            **{f"LLAMA_BUILD_{part}": "OFF" for part in _PARTS_LEFT_OUT},
        }
        words = [f"-D{name}={value}" for name, value in options.items()]
        run_in_background(["cmake", "-S", str(source), "-B", str(build), *words])
    return build


def link_driver(folder: Path) -> Path:
    """Compile our driver against the libraries, unless it is up to date."""
    source = folder / "source"
    headers = [source / "include", source / "ggml/include", source / "ggml/src"]
    return compile_program(
        folder / "llama_driver",
        "g++",
        DRIVER_SOURCE,
        ["-O2", "-std=c++17", *(f"-I{path}" for path in headers)],
        libraries=[folder / "build" / library for library in LIBRARIES],
    )
