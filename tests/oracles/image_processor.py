"""The image processor of transformers' Kimi K2.5: the same rule with the same numbers."""

from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import torchvision_operators


class ImageOracle:
    """Grid and pixels as the reference makes them."""

    def __init__(self, max_patches: int) -> None:
        torchvision_operators.declare()
        self._module = import_module("transformers.models.kimi_k25.image_processing_kimi_k25")
        self._max_patches = max_patches
        self._processor = self._module.Kimi_K25ImageProcessor(
            max_patches=max_patches, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of an image of that many pixels."""
        _, (padded_height, padded_width) = self._module.navit_resize(
            height, width, 14, 2, self._max_patches, 512
        )
        return padded_height // 14, padded_width // 14

    def patches(self, image: Image.Image) -> NDArray[np.float32]:
        """Patches (h, w, 3 * 14 * 14)."""
        made = self._processor(images=[image], return_tensors="np")
        _, h, w = made["image_grid_thw"][0]
        patches: NDArray[np.float32] = made["pixel_values"].reshape(h, w, 3 * 14 * 14)
        return patches
