"""A conversation as the model takes it: ids with room for image rows, and the images' patches.

Does not know: engines, the cache, sampling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import KimiVLConfig
from ..errors import CheckpointError, InputError
from .images import load_image
from .messages import Image, Message, images_of, parse_messages
from .patches import ImageRule, PatchedImage
from .template import ChatTemplate
from .tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Token ids and the images that belong to their placeholders, in order."""

    ids: NDArray[np.int64]
    """(S,): the media id stands once for each row of an image."""
    images: tuple[PatchedImage, ...]
    media_token_id: int
    max_positions: int | None = None
    """Tokens that the model was made for, the answer included; None if nobody said."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Makes prompts the way a checkpoint wants them."""

    tokenizer: Tokenizer
    template: ChatTemplate
    rule: ImageRule
    media_token_id: int
    max_positions: int

    @classmethod
    def load(cls, folder: Path, config: KimiVLConfig) -> "PromptEncoder":
        """Read tokenizer, chat template and image rule of a checkpoint folder.

        Raises:
            CheckpointError: one of the files cannot be used, or contradicts `config`.
        """
        tokenizer = Tokenizer.load(folder)
        rule = ImageRule.load(folder)
        vocab_size = config.decoder.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} ids and the model only "
                f"{vocab_size} (vocab_size); the files belong to different checkpoints"
            )
        if config.media_token_id not in tokenizer.special_ids:
            raise CheckpointError(
                f"{folder}: media_placeholder_token_id {config.media_token_id} is no special "
                "token of the tokenizer"
            )
        if rule.patch_size != config.vision.patch_size:
            raise CheckpointError(
                f"{folder}: patch_size is {rule.patch_size} in preprocessor_config.json and "
                f"{config.vision.patch_size} in config.json"
            )
        return cls(
            tokenizer=tokenizer,
            template=ChatTemplate.load(folder),
            rule=rule,
            media_token_id=config.media_token_id,
            max_positions=config.decoder.max_positions,
        )

    def encode(
        self,
        messages: Sequence[Message] | Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        images: Sequence[PatchedImage] | None = None,
    ) -> Prompt:
        """Turn a conversation into ids and patches.

        Args:
            messages: what `parse_messages` gave, or takes. A server calls it first, with
                `allow_paths=False`.
            add_generation_prompt: whether to open the assistant's next answer.
            images: what `open_image` made of the messages' images, in order, for who has opened
                them one by one; left out, they are opened here.

        Raises:
            InputError: a message or image cannot be used, or the template writes another number
                of placeholders than there are images.
            CapacityError: an image is over the limits of `load_image`.
            CheckpointError: the chat template fails on these messages.
        """
        parsed = parse_messages(messages)
        if images is None:
            images = [self.open_image(image) for image in images_of(parsed)]
        ids = self.template.encode(
            parsed, self.tokenizer, add_generation_prompt=add_generation_prompt
        )
        return Prompt(
            ids=self._expand(np.asarray(ids, dtype=np.int64), images),
            images=tuple(images),
            media_token_id=self.media_token_id,
            max_positions=self.max_positions,
        )

    def open_image(self, image: Image) -> PatchedImage:
        """Open one image of a message and cut it into patches.

        Raises:
            InputError: it cannot be used.
            CapacityError: it is over the limits of `load_image`.
        """
        return self.rule.patchify(load_image(image.source))

    def _expand(self, ids: NDArray[np.int64], images: Sequence[PatchedImage]) -> NDArray[np.int64]:
        is_media = ids == self.media_token_id
        num_places = int(is_media.sum())
        if num_places != len(images):
            raise InputError(
                f"the chat template writes {num_places} image placeholders for {len(images)} images"
            )
        times = np.ones(len(ids), dtype=np.int64)
        times[is_media] = [image.num_tokens for image in images]
        return np.repeat(ids, times)
