from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import CheckpointError, InputError
from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.messages import parse_messages
from runtime.prompt.special_tokens import (
    IM_ASSISTANT,
    IM_END,
    IM_MIDDLE,
    MEDIA_CONTENT,
    MEDIA_END,
    MEDIA_PAD,
    MEDIA_START,
)
from tests.doubles import make_small_config, special_id, write_small_text_files

PAD_ID = special_id(MEDIA_PAD)


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    return PromptEncoder.load(write_small_text_files(tmp_path), make_small_config())


def conversation(*sizes: tuple[int, int]) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": "look"}]
    parts += [{"type": "image", "image": Image.new("RGB", size)} for size in sizes]
    return [{"role": "user", "content": parts}]


def test_each_placeholder_is_repeated_for_the_rows_of_its_image(encoder: PromptEncoder) -> None:
    prompt = encoder.encode(conversation((28, 28), (84, 56)))
    assert [image.num_tokens for image in prompt.images] == [1, 6]
    assert prompt.media_token_id == PAD_ID
    assert prompt.ids.dtype == np.int64
    assert len(prompt) == prompt.ids.shape[0]
    ids = prompt.ids.tolist()
    word = encoder.tokenizer.encode("image")
    opening = [special_id(MEDIA_START), *word, special_id(MEDIA_CONTENT)]
    blocks = [
        *[*opening, PAD_ID, special_id(MEDIA_END)],
        *[*opening, *[PAD_ID] * 6, special_id(MEDIA_END)],
    ]
    tail = [
        special_id(IM_END),
        special_id(IM_ASSISTANT),
        *encoder.tokenizer.encode("assistant"),
        special_id(IM_MIDDLE),
    ]
    assert ids[-len(blocks + tail) :] == blocks + tail


def test_a_prompt_may_end_without_an_open_answer(encoder: PromptEncoder) -> None:
    messages = conversation((28, 28))
    closed = encoder.encode(messages, add_generation_prompt=False)
    assert closed.ids[-1] == special_id(IM_END)
    assert encoder.encode(messages).ids[: len(closed)].tolist() == closed.ids.tolist()


def test_parsed_messages_give_the_same_prompt(encoder: PromptEncoder) -> None:
    messages = conversation((30, 20))
    expected = encoder.encode(messages).ids.tolist()
    assert encoder.encode(parse_messages(messages)).ids.tolist() == expected


def test_a_placeholder_in_user_text_takes_no_image(encoder: PromptEncoder) -> None:
    prompt = encoder.encode([{"role": "user", "content": f"{MEDIA_START}{MEDIA_PAD}"}])
    assert PAD_ID not in prompt.ids
    assert prompt.images == ()


def test_frames_of_a_video_are_images(encoder: PromptEncoder) -> None:
    frames = [Image.new("RGB", (28, 28 * n)) for n in (1, 2, 3)]
    prompt = encoder.encode([{"role": "user", "content": [{"type": "video", "video": frames}]}])
    assert [image.num_tokens for image in prompt.images] == [1, 2, 3]
    assert int((prompt.ids == PAD_ID).sum()) == 6


@pytest.mark.parametrize(
    ("source", "num_places"), [("{{ messages[0].content[0].text }}", 0), ("{{ images }}", 2)]
)
def test_a_template_with_other_placeholders_than_images_is_refused(
    tmp_path: Path, source: str, num_places: int
) -> None:
    folder = write_small_text_files(tmp_path)
    text = "{{ messages[0].content[0].text }}" + MEDIA_PAD * num_places
    (folder / "chat_template.jinja").write_text(text if num_places else source)
    encoder = PromptEncoder.load(folder, make_small_config())
    with pytest.raises(InputError, match=f"writes {num_places} image placeholders for 1 images"):
        encoder.encode(conversation((28, 28)))


def test_a_config_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = write_small_text_files(tmp_path)
    config = make_small_config()
    with pytest.raises(CheckpointError, match="1456 ids and the model only 300"):
        PromptEncoder.load(folder, replace(config, decoder=replace(config.decoder, vocab_size=300)))
    with pytest.raises(CheckpointError, match="media_placeholder_token_id 7 is no special token"):
        PromptEncoder.load(folder, replace(config, media_token_id=7))
    with pytest.raises(CheckpointError, match="patch_size is 14 in preprocessor_config"):
        PromptEncoder.load(folder, replace(config, vision=replace(config.vision, patch_size=16)))
