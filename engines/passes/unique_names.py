"""Names that no two nodes or values share, branches included.

Passes work on the graph and its branches one at a time, and a name that is given in one may be
taken in another. TensorRT tells layers apart by them.
"""

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from ..lowering import Lowered


class UniqueNames:
    """Rename what was named twice."""

    name = "unique-names"

    def requires(self, model: ir.Model) -> str | None:
        """Inputs and outputs, whose names are a contract, are named once."""
        twice = _twice([*model.graph.inputs, *model.graph.initializers.values()])
        return f"inputs named twice: {twice[:3]}" if twice else None

    def run(self, lowered: Lowered) -> Lowered:
        """Give the later ones of the same name another one."""
        graph = lowered.model.graph
        nodes = list(graph.all_nodes())
        _rename(nodes, taken=set())
        contract = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        between = [value for node in nodes for value in node.outputs if value not in graph.outputs]
        _rename(between, taken={str(value.name) for value in contract})
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Every name is there once."""
        nodes = list(model.graph.all_nodes())
        twice = [*_twice(nodes), *_twice([value for node in nodes for value in node.outputs])]
        return f"named twice: {twice[:3]}" if twice else None


def _rename(named: Sequence[ir.Node] | Sequence[ir.Value], taken: set[str]) -> None:
    """Number names that are taken; `taken` grows."""
    for one in named:
        name, count = str(one.name), 1
        while name in taken:
            count += 1
            name = f"{one.name}_{count}"
        one.name = name
        taken.add(name)


def _twice(named: Sequence[ir.Node] | Sequence[ir.Value]) -> list[str]:
    counts = Counter(str(one.name) for one in named)
    return [name for name, count in counts.items() if count > 1]
