"""What TensorRT-RTX says of the card, asked with a network of one node instead of an artifact.

The package names no compute capability of data-centre cards, and what it does on one is nowhere
written. So it is asked step by step; every step tells its outcome with what was logged.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt_rtx

_GRAVE = ("ERROR", "WARNING")
"""Ends of the severities that are kept."""


def ask_rtx() -> Iterator[dict[str, Any]]:
    """Import the package, create a runtime, build for the card, then load a plan for RTX cards.

    Yields:
        The outcome of each step, by its name: `done` or what was said.
    """
    try:
        import tensorrt_rtx as api
    except (ImportError, OSError) as error:
        yield {"import": {"outcome": f"{type(error).__name__}: {error}", "logged": []}}
        return
    yield {"import": {"outcome": f"done, {api.__version__}", "logged": []}}
    logged: list[str] = []
    logger = _make_logger(api, logged)
    made: dict[str, Any] = {}
    for name, step in _steps(api, logger, made).items():
        logged.clear()
        try:
            made[name] = step()
            outcome = "nothing came of it" if made[name] is None else "done"
        except Exception as error:  # noqa: BLE001  whatever it says is what is asked for
            made[name], outcome = None, f"{type(error).__name__}: {error}"
        yield {name: {"outcome": outcome, "logged": list(logged)}}


def _steps(
    api: Any,  # noqa: ANN401  the package
    logger: "tensorrt_rtx.ILogger",
    made: Mapping[str, Any],
) -> dict[str, Callable[[], Any]]:
    """Name the steps in order; each finds in `made` what those before it made."""
    current = api.ComputeCapability.CURRENT
    return {
        "runtime": lambda: api.Runtime(logger),
        "plan_for_this_card": lambda: _build(api, logger, current),
        "plan_for_rtx_cards": lambda: _build(api, logger, None),
        "engine_for_this_card": lambda: _load(made, "plan_for_this_card"),
        "engine_for_rtx_cards": lambda: _load(made, "plan_for_rtx_cards"),
        "context": lambda: _make_context(made),
    }


def _make_logger(api: Any, logged: list[str]) -> "tensorrt_rtx.ILogger":  # noqa: ANN401
    class Logger(api.ILogger):  # type: ignore[misc]  # the package is not known here
        def __init__(self) -> None:
            api.ILogger.__init__(self)  # pybind11 demands it

        def log(self, severity: object, text: str) -> None:
            if str(severity).endswith(_GRAVE) or "compute capability" in text.lower():
                logged.append(text)

    return Logger()


def _build(api: Any, logger: "tensorrt_rtx.ILogger", capability: object | None) -> object | None:  # noqa: ANN401
    builder = api.Builder(logger)
    network = builder.create_network(0)
    given = network.add_input("x", api.float32, (4,))
    network.mark_output(network.add_unary(given, api.UnaryOperation.EXP).get_output(0))
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    plan: object | None = builder.build_serialized_network(network, config)
    return plan


def _load(made: Mapping[str, Any], plan: str) -> object | None:
    missing = [name for name in ("runtime", plan) if made[name] is None]
    if missing:
        raise RuntimeError(f"not tried without {' and '.join(missing)}")
    engine: object | None = made["runtime"].deserialize_cuda_engine(made[plan])
    return engine


def _make_context(made: Mapping[str, Any]) -> object | None:
    engine = made["engine_for_this_card"] or made["engine_for_rtx_cards"]
    if engine is None:
        raise RuntimeError("not tried without an engine")
    context: object | None = engine.create_execution_context()
    return context
