"""The cache has a fixed capacity, and attention reads a window of it."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.lowering import lower
from engines.trt.passes import LoweringOptions, passes
from engines.trt.passes.options import CacheReads
from engines.trt.passes.static_cache import StaticCache
from runtime.names import CACHE, CACHE_OUT, WINDOW

from .layers import CONFIG, DENSE, MAX_TOKENS, embed, example, lowered, recipe, run, write_layer
from .layers import relative_error as error_of

TOLERANCE = 1e-5


def options(reads: CacheReads) -> LoweringOptions:
    return LoweringOptions(max_tokens=MAX_TOKENS, sms=(89,), experts="dense", cache_reads=reads)


def test_old_and_new_cache_have_the_capacity(tmp_path: Path) -> None:
    model = lowered(write_layer(tmp_path, recipe("fp16")), options("capacity"))
    shapes = {value.name: value.shape for value in (*model.graph.inputs, *model.graph.outputs)}
    row = CONFIG.decoder.latent_width
    for name in (CACHE, CACHE_OUT):
        assert shapes[name] == ir.Shape(["B", 1, MAX_TOKENS, row])
    assert WINDOW not in shapes


@pytest.mark.parametrize("reads", ["window", "capacity"])
@pytest.mark.parametrize("lengths", [(0,), (MAX_TOKENS - 3, 0)])
def test_a_layer_reads_and_writes_what_the_neutral_one_does(
    reads: CacheReads, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe("fp32"), layer=DENSE)
    inputs = example(3, lengths)
    expected = run(ir.load(path), tmp_path, inputs)
    found = run(embed(lowered(path, options(reads))), tmp_path, inputs)
    assert max(map(error_of, found, expected)) < TOLERANCE
    assert np.array_equal(
        found[1][:, :, max(lengths) + 3 :], inputs[CACHE][:, :, max(lengths) + 3 :]
    )


def test_nothing_behind_the_window_is_read(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("fp32"), layer=DENSE)
    inputs = example(2, (5, 9))
    expected = run(ir.load(path), tmp_path, inputs)
    inputs[CACHE][:, :, inputs[WINDOW].size :] = np.nan
    found = run(embed(lowered(path, options("window"))), tmp_path, inputs)
    assert error_of(found[0], expected[0]) < TOLERANCE
    whole = run(embed(lowered(path, options("capacity"))), tmp_path, inputs)
    assert np.isnan(whole[0]).any()


def test_a_cache_of_codes_is_refused(tmp_path: Path) -> None:
    model = ir.load(write_layer(tmp_path, recipe("fp16"), layer=DENSE))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if str(value.name).startswith(CACHE):
            value.dtype = ir.DataType.INT8
    with pytest.raises(RuntimeError, match="TensorRT caches fp32, fp16 and bf16, not INT8"):
        lower(model, [StaticCache(MAX_TOKENS)])


def test_a_cache_that_is_written_elsewhere_is_refused(tmp_path: Path) -> None:
    model = ir.load(write_layer(tmp_path, recipe("fp16"), layer=DENSE))
    (scatter,) = (node for node in model.graph if node.op_type == "TensorScatter")
    model.graph.outputs.remove(scatter.outputs[0])
    with pytest.raises(
        RuntimeError, match="the cache is not an input, or the result not an output"
    ):
        lower(model, passes(options("window")))
