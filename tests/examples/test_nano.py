"""The example model: its committed sets, its committed checkpoint, and its training loop."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.nano import score
from examples.nano.batches import Encoder, Plan, draw_batch
from examples.nano.checkpoint_files import nano_config, release_tensors
from examples.nano.model import NanoModel
from examples.nano.question_sets import COUNTS, SEEDS, draw_set, picture_hash, read_set
from examples.nano.questions import (
    KINDS,
    Example,
    draw_cells,
    draw_ease,
    draw_example,
    draw_seed,
    draw_size,
)
from examples.nano.train import Settings, Trainer
from examples.nano.vocabulary import learn_tokens
from export.checkpoint.reader import Checkpoint
from tests.oracles.model import load_whole

NANO = Path(score.__file__).parent
CHECKPOINT = NANO / "checkpoint"
MAX_BYTES = 16 * 2**20

Nano = tuple[NanoModel, Encoder]


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Example]]:
    return {name: read_set(NANO / name) for name in SEEDS}


@pytest.fixture(scope="module")
def nano() -> Nano:
    return score.load(CHECKPOINT)


def _hashes(examples: list[Example]) -> set[str]:
    return {picture_hash(picture) for one in examples for picture in one.pictures}


def test_the_sets_hold_all_kinds_and_sizes(sets: dict[str, list[Example]]) -> None:
    for name, examples in sets.items():
        assert len(examples) == COUNTS[name]
        assert {one.kind for one in examples} == set(KINDS)
        assert {len(one.pictures) for one in examples} == {1, 2}
        assert len({picture.size for one in examples for picture in one.pictures}) > 100


def test_no_picture_is_in_two_sets_or_in_the_training(sets: dict[str, list[Example]]) -> None:
    committed = [_hashes(examples) for examples in sets.values()]
    heldout, calibration = committed
    assert not heldout & calibration
    settings = Settings.load(NANO / "settings.json")
    assert settings.seed not in SEEDS.values()
    for step in range(0, settings.steps, settings.steps // 25):
        assert not _hashes(_training_examples(settings, step)) & (heldout | calibration)


def _training_examples(settings: Settings, step: int) -> list[Example]:
    """Draw examples as a step of the training does, from its own seed."""
    rng = draw_seed(settings.seed, step)
    level = settings.plan.level(step)
    return [
        draw_example(rng, tuple(draw_size(rng, one, level) for one in cells), draw_ease(rng, level))
        for cells in [draw_cells(rng, 1 + step % 2, level)] * 10
    ]


def test_the_same_seed_draws_the_same_examples() -> None:
    one, other = (list(draw_set(7, 12)) for _ in range(2))
    assert [picture_hash(x.pictures[0]) for x in one] == [
        picture_hash(x.pictures[0]) for x in other
    ]
    assert [x.reply for x in one] == [x.reply for x in other]
    assert _hashes(one).isdisjoint(_hashes(list(draw_set(8, 12))))


def test_a_set_avoids_the_pictures_it_is_told_to() -> None:
    first = list(draw_set(7, 5))
    again = list(draw_set(7, 5, avoid=frozenset(_hashes(first))))
    assert _hashes(first).isdisjoint(_hashes(again))


def test_the_vocabulary_is_the_committed_one() -> None:
    lines = (CHECKPOINT / "tiktoken.model").read_text().splitlines()
    assert len(learn_tokens()) == len(set(learn_tokens())) == len(lines)


def test_the_checkpoint_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_BYTES
    checkpoint = Checkpoint.open(CHECKPOINT)
    assert checkpoint.config == nano_config()
    sizes = checkpoint.config
    assert sizes.vision.head_size == 72
    assert not any(
        width % 128
        for width in (sizes.decoder.width, sizes.decoder.expert_width, sizes.decoder.latent_rank)
    )
    assert sizes.vision.mlp_width % 128


def test_loading_gives_back_what_was_written(nano: Nano) -> None:
    model, _ = nano
    checkpoint = Checkpoint.open(CHECKPOINT)
    tensors = release_tensors(model)
    assert set(tensors) == set(checkpoint.names)
    assert all(torch.equal(tensors[name], checkpoint.tensor(name)) for name in tensors)


def test_it_uses_all_experts(nano: Nano, sets: dict[str, list[Example]]) -> None:
    """An expert that idles would have less than a quarter of its share of the tokens."""
    model, encoder = nano
    for layer in model.moe_layers():
        layer.loads.zero_()
    score.answer(model, encoder, sets["heldout"][:50])
    for layer in model.moe_layers():
        loads = layer.loads / layer.loads.sum()
        assert loads.min() > 0.25 / len(loads)
        assert loads.max() > 1.2 * loads.min()
        assert layer.gate.e_score_correction_bias.abs().max() > 0.01


def test_it_agrees_with_the_oracle(
    nano: Nano, sets: dict[str, list[Example]], tmp_path: Path
) -> None:
    model, encoder = nano
    oracle = load_whole(CHECKPOINT, tmp_path)
    for example in [sets["heldout"][index] for index in (0, 1, 11)]:
        batch = encoder.pack([example])
        wanted = torch.zeros_like(batch.real)
        wanted[0, -3:] = True
        grids = [(1, place.shape[1], place.shape[2]) for place in batch.patches]
        patches = [place.reshape(-1, 3, 14, 14) for place in batch.patches]
        with torch.no_grad():
            rows = torch.cat([model.see(place) for place in batch.patches], dim=1)
            ours = model(batch.ids, rows, batch.real, wanted)
            theirs = oracle(
                input_ids=batch.ids,
                pixel_values=torch.cat(patches),
                image_grid_thw=torch.tensor(grids),
            ).logits[0, -3:]
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("step", [0, 1, 9])
def test_a_batch_trains_on_the_reply_alone(nano: Nano, step: int) -> None:
    _, encoder = nano
    batch = draw_batch(encoder, Plan(batch=3), 1, step)
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        reply = targets[targets >= 0].tolist()
        assert reply[-1] == encoder.end_id
        assert encoder.decode(reply).startswith("◁think▷")
        first = int((targets >= 0).nonzero()[0])
        assert ids[first + 1 : first + len(reply)].tolist() == reply[:-1]


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = Settings(steps=5, balance_every=2, warm_up=2, plan=Plan(batch=2, text_every=3))
    straight = Trainer(settings, tmp_path / "straight")
    straight.run(5, workers=0, save_every=100)
    first = Trainer(settings, tmp_path / "resumed")
    first.run(3, workers=0, save_every=100)
    resumed = Trainer(settings, tmp_path / "resumed")
    resumed.resume()
    resumed.run(5, workers=0, save_every=100)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_settings_survive_their_file(tmp_path: Path) -> None:
    settings = Settings(steps=7, plan=Plan(batch=5))
    settings.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == settings


def test_numbers_stand_out_from_the_background() -> None:
    rng = draw_seed(3)
    for _ in range(20):
        picture = draw_example(rng, ((60, 40),), 0.0, "read").pictures[0]
        grey = np.asarray(picture.convert("L")).astype(int)
        assert grey.max() - grey.min() > 40
