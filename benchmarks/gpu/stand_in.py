"""Stand-ins for the libraries of CUDA, so that ONNX Runtime's provider loads where no card is.

Calls succeed and memory is the host's; kernels are never run, so that nothing is computed. What can
be seen is what the host decides: which nodes the provider takes, whether it would record them, and
what it launches while it records: a line `launch COUNT NAME` on stderr for each kernel or call.
"""

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIBRARIES = {
    "cublasLt": "libcublasLt.so.13",
    "cublas": "libcublas.so.13",
    "curand": "libcurand.so.10",
    "__cuda": "libcudart.so.13",
    "cuda": "libcudart.so.13",
    "cu": "libcuda.so.1",
}
"""By how the names of their functions begin, longest first."""
_UNDEFINED = re.compile(r"\bUND (\w+)(?:@(\S+))?")

_HANDLE = "*(void **)a = malloc(16); return 0;"
_ALLOCATE = "return posix_memalign((void **)a, 256, b ? b : 256);"
_FREE = "free((void *)a); return 0;"
_COPY = "memmove((void *)a, (void *)b, c); return 0;"
_COPY_LATER = f'called("cudaMemcpyAsync"); {_COPY}'
_FILL = "memset((void *)a, (int)b, c); return 0;"
_FILL_LATER = f'called("cudaMemsetAsync"); {_FILL}'
_VERSION = "*(int *)a = 13000; return 0;"
_TEXT = 'return (long)"stand-in";'
_BODIES = {
    "__cudaRegisterFatBinary": "static int one; static void *handle = &one; return (long)&handle;",
    "__cudaGetKernel": "*(void **)a = (void *)b; return 0;",
    "__cudaLaunchKernel": "launched((void *)a); return 0;",
    "__cudaRegisterFunction": "name((void *)b, (char *)d); return 0;",
    "cublasCreate_v2": _HANDLE,
    "cublasGetStatusName": _TEXT,
    "cublasGetStatusString": _TEXT,
    "cublasLtCreate": _HANDLE,
    "cudaDeviceGetAttribute": "*(int *)a = attribute((int)b); return 0;",
    "cudaDriverGetVersion": _VERSION,
    "cudaEventCreate": _HANDLE,
    "cudaEventCreateWithFlags": _HANDLE,
    "cudaEventElapsedTime": "*(float *)a = 1; return 0;",
    "cudaFree": _FREE,
    "cudaFreeAsync": _FREE,
    "cudaFreeHost": _FREE,
    "cudaFuncGetAttributes": "memset((void *)a, 0, 128); return 0;",
    "cudaGetDevice": "*(int *)a = 0; return 0;",
    "cudaGetDeviceCount": "*(int *)a = 1; return 0;",
    "cudaGetDeviceProperties": "properties((char *)a); return 0;",
    "cudaGetDriverEntryPointByVersion": "*(void **)b = (void *)done; return 0;",
    "cudaGetErrorName": _TEXT,
    "cudaGetErrorString": _TEXT,
    "cudaGraphInstantiate": _HANDLE,
    "cudaHostAlloc": _ALLOCATE,
    "cudaLaunchCooperativeKernel": "launched((void *)a); return 0;",
    "cudaLaunchKernel": "launched((void *)a); return 0;",
    "cudaLaunchKernelExC": "launched((void *)b); return 0;",
    "cudaLibraryGetKernel": _HANDLE,
    "cudaLibraryLoadData": _HANDLE,
    "cudaMalloc": _ALLOCATE,
    "cudaMallocFromPoolAsync": _ALLOCATE,
    "cudaMallocHost": _ALLOCATE,
    "cudaMemGetInfo": "*(long *)a = 70L << 30; *(long *)b = 80L << 30; return 0;",
    "cudaMemPoolCreate": _HANDLE,
    "cudaMemcpy": _COPY,
    "cudaMemcpyAsync": _COPY_LATER,
    "cudaMemset": _FILL,
    "cudaMemsetAsync": _FILL_LATER,
    "cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": "*(int *)a = 2; return 0;",
    "cudaPointerGetAttributes": "memset((void *)a, 0, 64); *(int *)a = 2; return 0;",
    "cudaRuntimeGetVersion": _VERSION,
    "cudaStreamCreate": _HANDLE,
    "cudaStreamCreateWithFlags": _HANDLE,
    "cudaStreamBeginCapture": 'setenv(RECORDS, "1", 1); return 0;',
    "cudaStreamEndCapture": "report(); *(void **)b = malloc(16); return 0;",
    "cudaStreamIsCapturing": "*(int *)b = getenv(RECORDS) != 0; return 0;",
}
"""What functions do that have more to do than to succeed; arguments are a, b, c ..."""

# Attributes and the layout of cudaDeviceProp: cuda_runtime_api.h and driver_types.h of CUDA 13.
_HEAD = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define RECORDS "STAND_IN_RECORDS"  // all libraries see one environment
static int done(void) { return 0; }
static int attribute(int which)
{
    switch (which) {
    case 1: return 1024;
    case 8: return 49152;
    case 10: return 32;
    case 16: return 132;
    case 39: return 2048;
    case 75: return 9;
    case 76: return 0;
    case 97: return 232448;
    }
    return 1;
}
static void properties(char *p)
{
    memset(p, 0, 1024);
    strcpy(p, "stand-in for an H100");
    *(size_t *)(p + 288) = 80UL << 30;
    *(size_t *)(p + 296) = 49152;
    *(int *)(p + 308) = 32;
    *(int *)(p + 320) = 1024;
    *(int *)(p + 360) = 9;
    *(int *)(p + 384) = *(int *)(p + 388) = 132;
}
static struct { void *key; const char *name; long count; } kernels[1 << 17];
static long num_kernels;
static void name(void *key, const char *text)
{
    if (num_kernels == 1 << 17) return;
    kernels[num_kernels].key = key;
    kernels[num_kernels++].name = text;
}
static void tell(long count, const char *text) { fprintf(stderr, "launch %ld %s\\n", count, text); }
static void launched(void *key)
{
    if (!getenv(RECORDS)) return;
    for (long i = 0; i < num_kernels; i++)
        if (kernels[i].key == key) { kernels[i].count++; return; }
    tell(1, "unknown");
}
static void called(const char *text) { if (getenv(RECORDS)) tell(1, text); }
static void report(void)
{
    unsetenv(RECORDS);
    for (long i = 0; i < num_kernels; i++) {
        if (kernels[i].count) tell(kernels[i].count, kernels[i].name);
        kernels[i].count = 0;
    }
}
"""


def write_stand_ins(provider: Path, folder: Path) -> None:
    """Compile what a provider's library needs of CUDA; takes a C compiler and `readelf`.

    Args:
        provider: `libonnxruntime_providers_cuda.so`.
        folder: gets the libraries.

    Raises:
        CalledProcessError: a tool failed.
    """
    command = ["readelf", "--dyn-syms", "-W", str(provider)]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for library, functions in needed(table).items():
        _compile(folder, library, functions)


def needed(table: str) -> dict[str, list[str]]:
    """Sort the functions that a table of symbols lacks by the library of CUDA that has them."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, _ in _UNDEFINED.findall(table):
        start = next((one for one in _LIBRARIES if name.startswith(one)), "")
        if start and (start != "cu" or name[2:3].isupper()):
            found[_LIBRARIES[start]].append(name)
    return {
        library: sorted(found.get(library, [])) for library in dict.fromkeys(_LIBRARIES.values())
    }


def source(functions: Sequence[str], bodies: Mapping[str, str] = _BODIES) -> str:
    """Write the C of some functions."""
    lines = [
        f"long {name}(long a, long b, long c, long d) {{ {bodies.get(name) or _succeed(name)} }}"
        for name in functions
    ]
    return "\n".join([_HEAD, *lines, ""])


def _succeed(function: str) -> str:
    """Give the body of what has nothing else to do; a product of cuBLAS is told."""
    is_product = re.match(r"cublas(Lt)?\w*(Gem[mv]|gem[mv]|Matmul(?!\w))", function)
    return f'called("{function}"); return 0;' if is_product else "return 0;"


def _compile(folder: Path, library: str, functions: Sequence[str]) -> None:
    code, versions = folder / f"{library}.c", folder / f"{library}.map"
    code.write_text(source(functions))
    exported = "".join(f"{name}; " for name in functions)
    versions.write_text(f"{library} {{ global: {exported}local: *; }};\n")
    command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}"]
    if functions and library != "libcuda.so.1":  # the driver's names have no versions
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run([*command, "-o", str(folder / library), str(code)], check=True)
