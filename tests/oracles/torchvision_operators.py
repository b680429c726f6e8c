"""Let torchvision's wheel be imported with the CPU build of torch.

It expects operators of its compiled half, which needs CUDA's torch; they are declared here and
never called.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_KEPT: list[Any] = []  # a Library that is collected takes its operators with it


def declare() -> None:
    """Declare the operators unless the compiled half of torchvision can be loaded."""
    spec = find_spec("torchvision")
    if _KEPT or spec is None or spec.origin is None:
        return
    try:
        for extension in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
    except OSError:  # built for another torch
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
