"""What is written beside a plan: what it was built from and for, and in what it computes."""

from collections.abc import Sequence
from typing import Any

from .audit import Audit, Wanted
from .builder import BuiltPlan
from .profiles import ShapeRange, Shapes


def plan_report(
    plan: BuiltPlan,
    audit: Audit,
    wanted: Wanted,
    profiles: Sequence[Shapes],
    *,
    graphs: Sequence[str],
) -> dict[str, Any]:
    """Sum up a plan; the same plan gives the same report, so there are no times in it."""
    return {
        "graphs": list(graphs),
        "target": plan.target,
        "built_with": plan.built_with,
        "profiles": [{name: _texts(one) for name, one in shapes.items()} for shapes in profiles],
        "layers": plan.num_layers,
        "weights_bytes": plan.weights_bytes,
        "activation_bytes": plan.activation_bytes,
        "decomposed_attention": list(plan.decomposed),
        "warnings": list(plan.warnings),
        "evidence": list(audit.evidence),
        "wanted_precision": audit.share(wanted),
        "exceptions": audit.exceptions(wanted),
        "products": [
            {
                "node": one.node,
                "weight": one.weight,
                "precision": str(one.precision),
                "multiply_adds": one.multiply_adds,
            }
            for one in audit.products
        ],
    }


def _texts(shapes: ShapeRange) -> dict[str, str]:
    return {name: "x".join(map(str, shape)) for name, shape in shapes._asdict().items()}
