"""The two homes of TensorRT, and everything in which they differ.

| | `rtx` | `trt` |
|---|---|---|
| package | `tensorrt_rtx` | `tensorrt` |
| builds for | SMs that are named, without a GPU | the GPU at hand |
| configuration | `CreateConfigRTX` | `CreateConfig` |

Both parse ONNX through Polygraphy, which is bound to one of them for as long as the process lives.
"""

import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from runtime.errors import UnsupportedError, describe_problems

from .sm import BuildTarget, HomeName

if TYPE_CHECKING:
    import tensorrt_rtx as rtx
    from polygraphy.backend.trt import Profile

NEEDED_POLYGRAPHY = (0, 53)
"""The first one that was tried; older ones do not know TensorRT-RTX."""

_QUIET = 1000
"""Over every severity that Polygraphy has."""


_ANOTHER_LOGGER = "The logger passed into"
"""Said when something else in this process came to TensorRT first; it changes nothing."""


@dataclass(frozen=True, kw_only=True)
class _Package:
    module: str
    title: str
    needed: tuple[int, int]


_PACKAGES: dict[HomeName, _Package] = {
    "rtx": _Package(module="tensorrt_rtx", title="TensorRT-RTX", needed=(1, 7)),
    "trt": _Package(module="tensorrt", title="TensorRT", needed=(11, 0)),
}


class Message(NamedTuple):
    """What TensorRT said."""

    severity: str
    """`INTERNAL_ERROR`, `ERROR`, `WARNING`, `INFO` or `VERBOSE`."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Home:
    """One TensorRT, loaded."""

    name: HomeName
    trt: ModuleType
    """The package."""
    version: str
    polygraphy_version: str

    @property
    def title(self) -> str:
        """The product's name and version."""
        return f"{_PACKAGES[self.name].title} {self.version}"

    @classmethod
    def load(cls, name: HomeName) -> "Home":
        """Import a home and bind Polygraphy to it.

        Raises:
            UnsupportedError: a package is missing or too old, or this process uses Polygraphy with
                the other home.
        """
        package = _PACKAGES[name]
        module, polygraphy = _import(package.module), _import("polygraphy")
        problems = [
            *_version_problems(package.module, module, package.needed),
            *_version_problems("polygraphy", polygraphy, NEEDED_POLYGRAPHY),
        ]
        if problems or module is None or polygraphy is None:
            where = f"building with {package.title}"
            extras = "plans" if name == "rtx" else "plans,trt"
            cure = f"pip install -e '.[{extras}]' in a checkout"
            raise UnsupportedError(f"{describe_problems(where, problems)}; {cure}")
        _bind_polygraphy(package)
        return cls(
            name=name,
            trt=module,
            version=str(module.__version__),
            polygraphy_version=str(polygraphy.__version__),
        )

    @property
    def logger(self) -> "rtx.ILogger":
        """The logger of this home, which tells those who are collecting."""
        return _only_logger(self.trt)

    @contextmanager
    def collecting(self) -> Iterator[list[Message]]:
        """Collect what TensorRT says during the block, above `VERBOSE`.

        Polygraphy has the same logger meanwhile and prints nothing: its own logger passes a warning
        on once in the life of a process.
        """
        from polygraphy.backend.trt import util

        before, logger = util.TRT_LOGGER, self.logger
        util.TRT_LOGGER = logger
        messages: list[Message] = []
        logger.listeners.append(messages)
        try:
            with _quiet_polygraphy():
                yield messages
        finally:
            logger.listeners.remove(messages)
            util.TRT_LOGGER = before

    def make_config(
        self,
        builder: "rtx.Builder",
        network: "rtx.INetworkDefinition",
        target: BuildTarget,
        profiles: Sequence["Profile"],
        monitor: "rtx.IProgressMonitor",
    ) -> "rtx.IBuilderConfig":
        """Make a builder configuration for a target, with full fp32 and Polygraphy's profiles.

        TensorRT rounds the inputs of fp32 products to TF32 unless told otherwise, and a router that
        is fp32 chooses experts by small differences. A plan that CUDA graphs are recorded of must
        allocate nothing while it runs.

        Raises:
            polygraphy.exception.PolygraphyException: a profile does not fit the network.
        """
        given = {"profiles": list(profiles), "progress_monitor": monitor}
        if self.name == "rtx":
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            # Without capabilities the plan would be for every SM from 80 on, and its number formats
            # would not be checked against any of them.
            create = CreateConfigRTX(compute_capabilities=list(target.capabilities), **given)
        else:
            from polygraphy.backend.trt import CreateConfig

            create = CreateConfig(**given)
        with _quiet_polygraphy(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it sets an unused timing cache
            config = create(builder, network)
        config.clear_flag(self.trt.BuilderFlag.TF32)
        if self.name == "rtx":  # only such plans can be recorded
            config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return config


@cache
def _only_logger(trt: ModuleType) -> "rtx.ILogger":
    """Make the one logger of a home: TensorRT keeps the first that it sees, and never lets go."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]  # a class found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: list[list[Message]] = []

        def log(self, severity: "rtx.ILogger.Severity", text: str) -> None:
            if severity == trt.ILogger.Severity.VERBOSE or _ANOTHER_LOGGER in text:
                return
            for messages in self.listeners:
                messages.append(Message(severity.name, text))

    return Logger()


@contextmanager
def _quiet_polygraphy() -> Iterator[None]:
    """Keep Polygraphy from printing on stdout, which belongs to results."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(_QUIET):
        yield


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a shared library of it does not load
        return None


def _version_problems(
    name: str, module: ModuleType | None, needed: tuple[int, int]
) -> Iterator[str]:
    least = ".".join(map(str, needed))
    if module is None:
        yield f"{name} is not installed or does not load; {least} or newer is needed"
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", module.__version__)[:2])
    if numbers < needed:
        yield f"{name} is {module.__version__}, {least} or newer is needed"


def _bind_polygraphy(package: _Package) -> None:
    """Make Polygraphy use a package: it decides when its modules are first imported."""
    from polygraphy import config

    before = config.USE_TENSORRT_RTX
    config.USE_TENSORRT_RTX = package.module == "tensorrt_rtx"
    from polygraphy.backend.trt import util

    found = util.trt.__name__
    if found != package.module:
        config.USE_TENSORRT_RTX = before
        raise UnsupportedError(
            f"polygraphy works with {found} in this process and cannot change to {package.module}; "
            f"build for {package.title} in a process of its own"
        )
