"""Balancing: it changes nothing by itself, and recovers what outlier channels cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.data.samples import draw, encode, load_conversations
from calibration.passes.runs import Samples, run_layer
from calibration.passes.streaming import Pass
from calibration.scales.balance import links
from calibration.scales.choose import Chooser
from calibration.scales.observe import Observer
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal, key_of
from export.graphs import plan_graphs
from export.quantised.storage import meaning
from export.recipe.reading import parse_recipe
from export.recipe.recipe import Recipe
from export.sources import fill_parts, load_parameters, parameter_sources
from runtime.prompt.encoder import PromptEncoder
from tests.calibration.outliers import write_planted

PARTS = ("attention", "dense_mlp", "experts", "shared_experts")
INT8 = 'weights = "int8"\nactivations = "int8"\n'
INT4 = 'weights = "int4"\ngroup = 128\n'
NVFP4 = 'weights = "nvfp4"\nactivations = "nvfp4"\n'
AWARE = 'balance = "activation-aware"\n'

Prices = Callable[[Path], dict[str, Any]]


def _recipe(name: str, body: str) -> Recipe:
    text = "".join(f"[parts.{part}]\n{body}\n" for part in PARTS)
    return parse_recipe(text, name, name)


RECIPES = (
    _recipe("int8", INT8),
    _recipe("int8-smooth", INT8 + 'balance = "smooth"\n'),
    _recipe("int4", INT4),
    _recipe("int4-aware", INT4 + AWARE),
    _recipe("nvfp4", NVFP4),
    _recipe("nvfp4-aware", NVFP4 + AWARE),
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each recipe loses on a model with outlier channels."""
    root = tmp_path_factory.mktemp("outliers")
    checkpoint = Checkpoint.open(write_planted(root / "checkpoint"))
    prompts = PromptEncoder.load(checkpoint.folder, checkpoint.config)
    observed, held_out = (
        [encode(one, prompts, 512) for one in draw(load_conversations(name), 32, seed=0)]
        for name in ("nano-calibration", "nano")
    )
    way = Pass(
        checkpoint=checkpoint,
        folder=root / "calibration",
        samples=Samples(observed=observed, held_out=held_out),
        recipes=RECIPES,
        layers=range(checkpoint.config.decoder.num_layers),
        min_expert_tokens=8,
    )
    stats = way.run(Journal(root, "calibrate", key_of({})), root)
    return {name: one["price"] for name, one in stats["head"]["recipes"].items()}


@pytest.mark.parametrize(
    ("plain", "balanced", "gain"),
    [("int8", "int8-smooth", 100), ("int4", "int4-aware", 5), ("nvfp4", "nvfp4-aware", 1000)],
)
def test_balancing_recovers_what_outliers_cost(
    planted: dict[str, Any], plain: str, balanced: str, gain: float
) -> None:
    assert planted[plain]["kl_mean"] > gain * planted[balanced]["kl_mean"]
    assert planted[balanced]["top1"] >= planted[plain]["top1"]
    assert planted[balanced]["exact_match"] >= planted[balanced]["exact_match_reference"] - 0.04


def test_outliers_ruin_plain_rounding(planted: dict[str, Any]) -> None:
    assert planted["int8"]["exact_match"] < planted["int8"]["exact_match_reference"] - 0.1
    assert planted["nvfp4"]["exact_match"] < 0.2


@pytest.mark.parametrize("graph", ["layer_00", "layer_01"])
def test_factors_alone_change_no_bit(graph: str) -> None:
    """All links at once, with every part of the layer balanced: the same outputs as before."""
    checkpoint = Checkpoint.open(HERE / "checkpoint")
    config = checkpoint.config
    plans = plan_graphs(config, torch.float32, range(2), taps=True)
    plan = next(one for one in plans if one.name == graph)
    module = plan.build()
    sources = parameter_sources(module, plan.prefix, checkpoint)
    load_parameters(module, sources)
    hidden = torch.randn(40, config.decoder.width, generator=torch.Generator().manual_seed(5))
    observer = Observer(module, config.decoder.num_experts)
    with observer.watching(torch.arange(40) < 10):
        before, _ = run_layer(module, hidden, config)
    scales = Chooser(
        module=module,
        recipe=_recipe("smooth", INT8 + 'balance = "smooth"\n'),
        base=torch.bfloat16,
        observations=observer.observations,
        min_expert_tokens=1,
    ).choose()
    takers = {name for link in links(module) for name in link.takers}
    assert takers <= scales.factors.keys()
    with torch.no_grad():
        for source in sources:
            parts = (after for _, after in meaning(source, scales, None))
            fill_parts(module.get_parameter(source.name), parts)
    after, _ = run_layer(module, hidden, config)
    assert torch.equal(before, after)
