"""A cache of fixed capacity: TensorRT writes new rows in place only if it knows the capacity.

`TensorScatter` becomes its KV_CACHE_UPDATE layer, which wants the cache as an input of the network
and the result as an output; both are bound to the same memory. Rows written behind the capacity are
dropped without a word, so the caller counts.
"""

import onnx_ir as ir

from runtime.names import CACHE

from ...lowering import Lowered

_TAKEN = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CACHED = "T"
"""Symbol of the axis of cached tokens in neutral graphs."""


class StaticCache:
    """Give the cache's token axis its capacity wherever the graph names it."""

    name = "static-cache"

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def requires(self, model: ir.Model) -> str | None:
        """Every cache is written by one TensorScatter along axis 2, in a type that is taken."""
        inputs, outputs = set(model.graph.inputs), set(model.graph.outputs)
        for node in _writes(model):
            cache = node.inputs[0]
            if cache not in inputs or node.outputs[0] not in outputs:
                return f"{node.name}: the cache is not an input, or the result not an output"
            if cache.dtype not in _TAKEN:
                return f"{cache.name}: TensorRT caches fp32, fp16 and bf16, not {cache.dtype}"
        caches = [value for value in inputs if str(value.name).startswith(CACHE)]
        return None if len(caches) == len(_writes(model)) else "a cache that nothing writes"

    def run(self, lowered: Lowered) -> Lowered:
        """Put the number in place of the symbol; graphs without a cache stay as they are."""
        graph = lowered.model.graph
        produced = [output for node in graph for output in node.outputs]
        for value in (*graph.inputs, *produced):
            if value.shape is not None:
                sizes = [self._max_tokens if size == _CACHED else size for size in value.shape]
                value.shape = ir.Shape(sizes)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Old and new caches have the capacity."""
        for node in _writes(model):
            for value in (node.inputs[0], node.outputs[0]):
                if value is None or value.shape is None or value.shape[2] != self._max_tokens:
                    return f"{node.name}: a cache without the capacity {self._max_tokens}"
        return None


def _writes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "TensorScatter"]
