"""Train the example model: `python -m examples.nano.train --out FOLDER [--resume]`.

Fresh pictures at every step, so that the accuracy in the log is that on pictures never seen before.
A run that is stopped and resumed ends with the same weights as one that was not.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.prompt.encoder import PromptEncoder

from .batches import IGNORED, Batch, Encoder, Plan, draw_batch
from .checkpoint_files import nano_config, write_tensors, write_text
from .model import NanoModel, initialise

STATE_FILE = "state.pt"
LOG_FILE = "train_log.jsonl"
SETTINGS_FILE = "settings.json"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the weights follow from."""

    seed: int = 1
    steps: int = 8000
    rate: float = 1e-3
    """Largest learning rate: reached after `warm_up` steps, kept until the last `decay_steps`."""
    warm_up: int = 100
    decay_steps: int = 2000
    vision_share: float = 0.4
    """The tower's and the projector's rate against the decoder's, in the first `vision_steps`.
    Before digits can be read, what reaches them is the same for all pictures; at the full rate it
    drives them into saturation."""
    vision_steps: int = 400
    weight_decay: float = 0.01
    clip: float = 1.0
    balance_every: int = 8
    """Steps between two corrections of the experts' loads."""
    balance_rate: float = 4e-3
    """By how much a correction bias moves each time, at the largest learning rate."""
    plan: Plan = field(default_factory=Plan)

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        plan = values["plan"]
        plan["ramp"] = tuple((step, level) for step, level in plan["ramp"])
        return cls(**{**values, "plan": Plan(**plan)})

    def save(self, path: Path) -> None:
        """Write all values."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def share(self, step: int) -> float:
        """The learning rate of a step as a share of the largest."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        return min(1.0, max(0.0, (self.steps - step) / self.decay_steps))


class _Stream(Dataset[Batch]):
    """Training batches by step."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        self._encoder = encoder
        self._settings = settings

    def __getitem__(self, step: int) -> Batch:
        return draw_batch(self._encoder, self._settings.plan, self._settings.seed, step)


class Trainer:
    """A model on its way through the steps."""

    def __init__(self, settings: Settings, folder: Path, device: str = "cpu") -> None:
        """Start at step 0; `folder` gets checkpoint, state and log."""
        self.settings = settings
        self.folder = folder
        self.device = device
        self.step = 0
        self.seconds = 0.0
        (folder / CHECKPOINT).mkdir(parents=True, exist_ok=True)
        write_text(folder / CHECKPOINT)
        config = nano_config()
        self.encoder = Encoder(PromptEncoder.load(folder / CHECKPOINT, config))
        self.model = NanoModel(config)
        initialise(self.model, torch.Generator().manual_seed(settings.seed))
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.95), fused=True)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay; vectors do not decay."""
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for name, weight in self.model.named_parameters():
            decay = self.settings.weight_decay if weight.dim() > 1 else 0.0
            is_vision = not name.startswith("language_model")
            groups.setdefault((is_vision, decay), []).append(weight)
        return [
            {"params": weights, "vision": is_vision, "weight_decay": decay}
            for (is_vision, decay), weights in groups.items()
        ]

    def run(self, last: int, *, workers: int, log_every: int = 100, save_every: int = 250) -> None:
        """Train up to a step; logs and saves on the way."""
        stream = DataLoader(
            _Stream(self.encoder, self.settings),
            batch_size=None,
            sampler=range(self.step, last),
            num_workers=workers,
            prefetch_factor=8 if workers else None,
        )
        tally = _Tally()
        started = time.monotonic() - self.seconds
        for batch in stream:
            tally.add(batch, *self._learn(batch))
            self.step += 1
            if self.step % self.settings.balance_every == 0:
                tally.loads = self._balance()
            self.seconds = time.monotonic() - started
            if self.step % log_every == 0:
                self._log(tally)
                tally = _Tally()
            if self.step % save_every == 0 or self.step == last:
                self.save()

    def _learn(self, batch: Batch) -> tuple[float, Tensor]:
        """Take one step; returns the loss and which examples were right in every token."""
        share = self.settings.share(self.step)
        for group in self.optimizer.param_groups:
            is_slow = group["vision"] and self.step < self.settings.vision_steps
            slowed = share * (self.settings.vision_share if is_slow else 1.0)
            group["lr"] = self.settings.rate * slowed
        ids, targets, real = (x.to(self.device) for x in (batch.ids, batch.targets, batch.real))
        seen = [self.model.see(place.to(self.device)) for place in batch.patches]
        wanted = targets != IGNORED
        logits = self.model(ids, torch.cat(seen, dim=1) if seen else None, real, wanted)
        loss = F.cross_entropy(logits, targets[wanted])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        is_wrong = torch.zeros_like(wanted)
        is_wrong[wanted] = logits.argmax(dim=-1) != targets[wanted]
        return float(loss.detach()), ~is_wrong.any(dim=1).cpu()

    def _balance(self) -> list[list[float]]:
        """Make overloaded experts less likely and idle ones more; returns the loads."""
        shares = []
        amount = self.settings.balance_rate * self.settings.share(self.step)
        for layer in self.model.moe_layers():
            loads = layer.loads / layer.loads.sum()
            layer.gate.e_score_correction_bias += amount * torch.sign(loads.mean() - loads)
            layer.loads.zero_()
            shares.append([round(load, 3) for load in loads.tolist()])
        return shares

    def _log(self, tally: "_Tally") -> None:
        line = {"step": self.step, **tally.summary(), "seconds": round(self.seconds)}
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the checkpoint folder, and the state that `resume` takes up."""
        write_tensors(self.folder / CHECKPOINT, self.model)
        state = {
            "model": self.model.state_dict(),
            "loads": [layer.loads for layer in self.model.moe_layers()],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.folder / f"{STATE_FILE}.partial"
        torch.save(state, partial)
        partial.replace(self.folder / STATE_FILE)

    def resume(self) -> None:
        """Go on where `save` left off."""
        state = torch.load(self.folder / STATE_FILE, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for layer, loads in zip(self.model.moe_layers(), state["loads"], strict=True):
            layer.loads.copy_(loads)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


class _Tally:
    """Mean loss and accuracy since the last line of the log."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._right: dict[str, list[float]] = {}
        self.loads: list[list[float]] = []

    def add(self, batch: Batch, loss: float, right: Tensor) -> None:
        """Count one batch."""
        name = ("text", "one", "two")[len(batch.patches)]
        self._losses.append(loss)
        self._right.setdefault(name, []).append(float(right.float().mean()))

    def summary(self) -> dict[str, Any]:
        """Give the line's values; accuracy is that of whole replies, by number of pictures."""
        return {
            "loss": round(sum(self._losses) / len(self._losses), 4),
            "exact": {
                name: round(sum(values) / len(values), 4)
                for name, values in sorted(self._right.items())
            },
            "loads": self.loads,
        }


def _arguments() -> Iterator[tuple[str, Any]]:
    for one in fields(Settings):
        if one.name != "plan":
            yield one.name, one.type
    for one in fields(Plan):
        if one.name != "ramp":
            yield one.name, one.type


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--resume", action="store_true", help="go on from the last saved step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--settings", type=Path, help=f"a {SETTINGS_FILE} in place of the defaults")
    for name, kind in _arguments():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    options = vars(parser.parse_args())
    torch.set_num_threads(options["threads"])
    folder: Path = options["out"]
    if options["resume"]:
        settings = Settings.load(folder / SETTINGS_FILE)
    else:
        base = Settings.load(options["settings"]) if options["settings"] else Settings()
        settings = _changed(base, options)
    trainer = Trainer(settings, folder, options["device"])
    settings.save(folder / SETTINGS_FILE)
    if options["resume"]:
        trainer.resume()
    trainer.run(settings.steps, workers=options["workers"])


def _changed(settings: Settings, options: dict[str, Any]) -> Settings:
    values = asdict(settings)
    plan = values.pop("plan")
    for name, _ in _arguments():
        if options[name] is not None:
            (plan if name in plan else values)[name] = options[name]
    return Settings(**values, plan=Plan(**plan))


if __name__ == "__main__":
    main()
