"""How the error grows from graph to graph."""

from .charts import Bar, BarChart
from .findings import Findings
from .markup import element
from .sections import Section, prose

_AXIS = "relative error of the values behind the graph"


def graphs_section(findings: Findings) -> Section | None:
    """Show the error behind each graph; nothing if no graph has one."""
    errors = findings.errors()
    if not errors:
        return None
    bars = [Bar(label=graph, value=error) for graph, error in errors.items()]
    worst = max(bars, key=lambda bar: bar.value)
    title = f"Relative error behind {len(bars)} graphs; the largest is {worst.text}, {worst.label}"
    return Section(
        name="graphs",
        title="Error by graph",
        content=(
            prose(
                "What comes out of each graph on the held-out samples: |recipe - fp32| / |fp32|.",
                "Every graph takes what the one before it gave, so an error is carried on.",
            ),
            element("figure", BarChart(bars=bars, axis=_AXIS, title=title).draw()),
        ),
    )
