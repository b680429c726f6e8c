"""What outputs of a whole model do not show: the kind of GELU and the epsilon of every norm."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.modules.decoder import Attention, DecoderLayer, Head
from export.modules.linear import LayerNorm, Linear, RMSNorm
from export.modules.vision import Encoder, Projector, VisionBlock, VisionMLP
from tests.doubles import make_small_config

CONFIG = make_small_config()
GRID = torch.linspace(-6, 6, 4001, dtype=torch.float64)


def exact_gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def identity_linear(layer: Linear) -> None:
    """Make a linear map pass its first channel through."""
    layer.weight.data.zero_()
    layer.weight.data[0, 0] = 1
    assert layer.bias is not None
    layer.bias.data.zero_()


def through_mlp(x: Tensor) -> Tensor:
    mlp = VisionMLP(CONFIG.vision, torch.float64)
    identity_linear(mlp.fc0)
    identity_linear(mlp.fc1)
    rows = torch.zeros(1, len(x), CONFIG.vision.width, dtype=torch.float64)
    rows[0, :, 0] = x
    found: Tensor = mlp(rows)[0, :, 0].detach()
    return found


def through_projector(x: Tensor) -> Tensor:
    projector = Projector(CONFIG, torch.float64)
    identity_linear(projector.linear_1)
    identity_linear(projector.linear_2)
    projector.pre_norm = nn.Identity()  # type: ignore[assignment]
    rows = torch.zeros(len(x), 4, CONFIG.vision.width, dtype=torch.float64)
    rows[:, 0, 0] = x
    found: Tensor = projector(rows)[:, 0].detach()
    return found


@pytest.mark.parametrize(
    ("through", "right", "wrong"),
    [(through_mlp, tanh_gelu, exact_gelu), (through_projector, exact_gelu, tanh_gelu)],
    ids=["vision MLP: tanh", "projector: exact"],
)
def test_each_gelu_is_of_its_kind(
    through: Callable[[Tensor], Tensor],
    right: Callable[[float], float],
    wrong: Callable[[float], float],
) -> None:
    found = through(GRID).numpy()
    np.testing.assert_allclose(found, [right(x) for x in GRID.tolist()], atol=1e-12)
    assert np.abs(found - [wrong(x) for x in GRID.tolist()]).max() > 1e-4


def norm_of_small_input(norm: LayerNorm | RMSNorm, *, centred: bool) -> float:
    """The epsilon that explains what a norm with weight 1 does to inputs of size 1e-3."""
    size = norm.weight.shape[0]
    norm.double()
    norm.weight.data.fill_(1)
    if isinstance(norm, LayerNorm):
        norm.bias.data.zero_()
    x = 1e-3 * torch.randn(1, size, generator=torch.Generator().manual_seed(0)).double()
    y = norm(x).detach()
    deviation = x - x.mean() if centred else x
    return float(((deviation / y) ** 2 - (deviation**2).mean()).mean())


def test_every_layer_norm_has_epsilon_1e_5() -> None:
    block, encoder = (
        VisionBlock(CONFIG.vision, torch.float32),
        Encoder(CONFIG.vision, torch.float32),
    )
    projector = Projector(CONFIG, torch.float32)
    for norm in (block.norm0, block.norm1, encoder.final_layernorm, projector.pre_norm):
        assert norm_of_small_input(norm, centred=True) == pytest.approx(1e-5, rel=1e-3)


def test_every_rms_norm_has_the_epsilon_of_the_config_but_the_latent_one() -> None:
    decoder = CONFIG.decoder
    layer = DecoderLayer(decoder, torch.float32, dense=True)
    head_norm = Head(decoder, torch.float32).model["norm"]
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, head_norm):
        assert isinstance(norm, RMSNorm)
        assert norm_of_small_input(norm, centred=False) == pytest.approx(1e-5, rel=1e-3)
    latent = Attention(decoder, torch.float32).kv_a_layernorm
    assert norm_of_small_input(latent, centred=False) == pytest.approx(1e-6, rel=1e-3)
