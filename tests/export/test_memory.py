"""Export holds about a tensor, however many layers there are: anonymous memory, measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from export.synthetic.configs import TINY_CONFIG
from export.synthetic.folder import write_synthetic

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import torch, onnxscript
from export.checkpoint.reader import Checkpoint
from export.stage import ExportOptions, export_checkpoint

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

checkpoint = Checkpoint.open(sys.argv[1])
peak, stages, before = [0], [], anonymous_bytes()
def watch():
    while True:
        if not stages or stages[-1] == "export":
            peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
export_checkpoint(
    checkpoint, Path(sys.argv[2]), ExportOptions(), lambda stage, done, total: stages.append(stage)
)
print(json.dumps({"growth": peak[0] - before}))
"""


@pytest.mark.slow
def test_a_27_layer_export_holds_a_few_layers_at_most(tmp_path: Path) -> None:
    fields = json.loads(json.dumps(TINY_CONFIG))
    sizes = {"hidden_size": 384, "moe_intermediate_size": 256, "n_routed_experts": 16}
    fields["text_config"].update(sizes, num_hidden_layers=27)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(fields))
    checkpoint = write_synthetic(tmp_path / "checkpoint", shape=config, lazy=True)
    artifact = tmp_path / "artifact"
    program: list[str | Path] = [sys.executable, "-c", PROGRAM, checkpoint, artifact]
    done = subprocess.run(
        program, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    growth = json.loads(done.stdout)["growth"]
    weights = [path.stat().st_size for path in artifact.glob("graphs/weights/layer_*.bin")]
    assert len(weights) == 27
    assert sum(weights) > 500e6
    assert growth < sum(weights) / 4  # about 100 MB, whatever the size: libraries and one tensor
