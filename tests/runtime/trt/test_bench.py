"""Benchmark rows through the engine protocol, on plans of TensorRT executed by the double."""

from engines.measure.images import ImageSize
from engines.measure.rows import Wanted, choose_rows
from engines.measure.timing import time_all
from examples.nano.score import HERE
from runtime.engine.trt.engine import TensorRTEngine
from runtime.prompt.patches import ImageRule


def test_rows_and_images_are_timed_on_plans(engine: TensorRTEngine) -> None:
    wanted = Wanted(prompts=(20,), decodes=(2,), depths=(0, 40), batches=(1, 2))
    rows = choose_rows(wanted, engine.limits, engine.limits.max_tokens).rows
    found = time_all(
        engine,
        rows,
        [ImageSize(56, 56)],
        vocab_size=700,
        rule=ImageRule.load(HERE / "checkpoint"),
        repeats=1,
    )
    assert [one.row.name for one in found.rows] == [row.name for row in rows]
    assert all(sum(one.samples_s[0]) > 0 for one in found.rows)
    assert found.images[0].image_tokens == 4
