"""The TensorRT that plans were built with: found, of the same version, and for this GPU."""

import importlib
from types import ModuleType

from ...artifact.records import PlansRecord
from ...errors import UnsupportedError, describe_problems
from ...plugins.classes import register_plugins
from ..gpu.device import Device

_NAMES = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


def load_package(record: PlansRecord) -> ModuleType:
    """Import the package and register our plugins with it.

    Raises:
        UnsupportedError: it is unknown, not installed, or of another version than the plans.
    """
    if record.package not in _NAMES:
        raise UnsupportedError(f"plans of {record.package!r}: known are {', '.join(_NAMES)}")
    title = _NAMES[record.package]
    try:
        package = importlib.import_module(record.package)
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        raise UnsupportedError(
            f"{title} is not installed or does not load ({error}); "
            f"pip install {record.package}=={record.version}"
        ) from error
    if package.__version__ != record.version:
        raise UnsupportedError(
            f"the plans were built with {title} {record.version}, here is {package.__version__}; "
            f"install that version or build the target again with this one"
        )
    register_plugins(package)
    return package


def check_device(record: PlansRecord, device: Device) -> None:
    """Compare the GPU with those that the plans were built for.

    Raises:
        UnsupportedError: it is none of them.
    """
    if f"sm{device.sm}" not in record.sms:
        target = f"rtx:sm{device.sm}" if record.package == "tensorrt_rtx" else "trt, here"
        problem = (
            f"the plans were built for {' and '.join(record.sms)}, {device.name} is sm{device.sm}; "
            f"build them for {target}"
        )
        raise UnsupportedError(describe_problems(_NAMES[record.package], [problem]))
