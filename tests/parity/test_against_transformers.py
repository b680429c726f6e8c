"""Every graph and the whole model against transformers' `kimi_k25` and `deepseek_v3`, in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from calibration.parity import relative_error
from calibration.tolerances import GRAPH_FP32, WHOLE_FP32
from runtime import GenerationLimits, Prompt
from runtime.prompt.patches import position_weights
from tests.oracles import model as oracles

from .conftest import Compiled, make_prompt

Oracle = Callable[[Compiled], Any]
PROMPTS = {
    "text only": [],
    "one wide image": [(131, 45)],
    "two images": [(57, 140), (90, 60)],
    "four images": [(28, 28), (200, 90), (61, 61), (30, 150)],
}


def image_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    """Patches and grids of all images as the oracle takes them."""
    if not prompt.images:
        return {}
    patches = [image.patches.reshape(-1, 3, 14, 14) for image in prompt.images]
    grids = [(1, *image.grid) for image in prompt.images]
    return {
        "pixel_values": torch.from_numpy(np.concatenate(patches)),
        "image_grid_thw": torch.tensor(grids),
    }


def oracle_logits(oracle: Any, prompt: Prompt) -> NDArray[np.float32]:  # noqa: ANN401
    """Teacher-forced logits of the oracle, (S, V)."""
    with torch.no_grad():
        output = oracle(input_ids=torch.from_numpy(prompt.ids)[None], **image_inputs(prompt))
    logits: NDArray[np.float32] = output.logits[0].numpy()
    return logits


def run_graph(compiled: Compiled, name: str, inputs: dict[str, Any]) -> list[Any]:
    """Run one lowered graph by itself."""
    path = compiled.artifact / "graphs" / f"{name}.cpu.onnx"
    return list(ort.InferenceSession(path).run(None, inputs))


@pytest.mark.parametrize("sizes", PROMPTS.values(), ids=PROMPTS)
def test_logits_of_the_whole_model_equal_the_oracle(
    fp32: Compiled, whole_oracle: Oracle, sizes: list[tuple[int, int]]
) -> None:
    prompt = make_prompt(fp32.session, sizes, "what is this? 今日は")
    found = fp32.session.logits(prompt)
    expected = oracle_logits(whole_oracle(fp32), prompt)
    assert relative_error(found, expected) <= WHOLE_FP32
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))


def test_text_logits_equal_the_decoder_alone(fp32: Compiled, tmp_path: Path) -> None:
    prompt = make_prompt(fp32.session, [], "only words, and 12345 numbers")
    decoder = oracles.load_decoder(fp32.checkpoint, tmp_path)
    with torch.no_grad():
        expected = decoder(torch.from_numpy(prompt.ids)[None]).logits[0].numpy()
    assert relative_error(fp32.session.logits(prompt), expected) <= WHOLE_FP32


def test_the_vision_and_projector_graphs_equal_the_oracle(
    fp32: Compiled, whole_oracle: Oracle
) -> None:
    tower = whole_oracle(fp32).model
    prompt = make_prompt(fp32.session, PROMPTS["four images"], "x")
    with torch.no_grad():
        encoded = tower.vision_tower(
            image_inputs(prompt)["pixel_values"], grid_thw=image_inputs(prompt)["image_grid_thw"]
        )
        features = tower.mm_projector(encoded.pooler_output)
    start = 0
    for image in prompt.images:
        expected = encoded.pooler_output[start : start + image.num_tokens].numpy()
        side = tower.config.vision_config.pos_emb_height
        inputs = {
            "patches": image.patches,
            "row_weights": position_weights(image.grid.h, side),
            "column_weights": position_weights(image.grid.w, side),
        }
        merged = run_graph(fp32, "vision", inputs)[0]
        assert relative_error(merged, expected) <= GRAPH_FP32
        projected = run_graph(fp32, "projector", {"merged": expected})[0]
        rows = features.reshape(-1, projected.shape[-1])[start : start + image.num_tokens]
        assert relative_error(projected, rows.numpy()) <= GRAPH_FP32
        start += image.num_tokens
    assert start == len(encoded.pooler_output)


def test_each_layer_and_the_head_equal_the_oracle(fp32: Compiled, whole_oracle: Oracle) -> None:
    prompt = make_prompt(fp32.session, [(100, 60)], "one layer after the other")
    with torch.no_grad():
        output = whole_oracle(fp32)(
            input_ids=torch.from_numpy(prompt.ids)[None],
            **image_inputs(prompt),
            output_hidden_states=True,
        )
    states = [state.numpy() for state in output.hidden_states]  # the last one is behind the norm
    width = fp32.session.engine._cache._layers[0]["cache"].shape[-1]  # type: ignore[attr-defined]
    cache = np.zeros((1, 1, len(prompt), width), dtype=np.float32)
    hidden = states[0]
    for layer in range(len(states) - 1):
        inputs = {"hidden": hidden, "cache": cache, "lengths": np.array([0])}
        hidden = run_graph(fp32, f"layer_{layer:02d}", inputs)[0]
        if layer + 1 < len(states) - 1:
            assert relative_error(hidden, states[layer + 1]) <= GRAPH_FP32
            hidden = states[layer + 1]
    logits = run_graph(fp32, "head", {"hidden": hidden, "rows": np.arange(len(prompt))})[0]
    assert relative_error(logits, output.logits[0].numpy()) <= GRAPH_FP32


def oracle_answer(oracle: Any, prompt: Prompt) -> list[int]:  # noqa: ANN401
    """64 greedy ids of the oracle."""
    with torch.no_grad():
        ids = oracle.generate(
            input_ids=torch.from_numpy(prompt.ids)[None],
            **image_inputs(prompt),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
        )
    answer: list[int] = ids[0, len(prompt) :].tolist()
    return answer


def test_greedy_answers_of_64_tokens_equal_the_oracle(fp32: Compiled, whole_oracle: Oracle) -> None:
    """Prompts whose answer holds an id that the oracle treats apart are skipped.

    It embeds the image and video placeholders as another id, and does not choose the end of text
    before 64 tokens.
    """
    oracle, compared = whole_oracle(fp32), 0
    apart = {oracle.config.image_token_id, oracle.config.video_token_id} | fp32.session.stop_ids
    for text in ("which is larger?", "tell me", "why", "describe them"):
        prompt = make_prompt(fp32.session, [(57, 140), (90, 60)], text)
        request = fp32.session.request(prompt, limits=GenerationLimits(max_new_tokens=64))
        request.stop_ids = frozenset()
        for _ in fp32.session.stream(request):
            pass
        assert request.result is not None
        if not apart & set(request.result.ids):
            assert list(request.result.ids) == oracle_answer(oracle, prompt)
            compared += 1
    assert compared >= 1
