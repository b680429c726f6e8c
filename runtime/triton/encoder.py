"""An image's rows of the prompt, from models of the tower and the projector that the server runs.

For whoever wants features alone, or the encoder in another backend than the conversation.

Source: https://github.com/triton-inference-server/python_backend (README: business logic
scripting).
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import names
from ..config import KimiVLConfig
from ..engine.vision_inputs import vision_inputs
from ..errors import CapacityError, KimiVLError
from ..prompt.images import load_image
from ..prompt.patches import ImageRule, PatchedImage
from . import tensors
from .errors import triton_error
from .questions import image_source


class ImageEncoderModel:
    """What the server's stub makes one of for each instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read how the checkpoint wants its images.

        Args:
            args: of the stub: `model_config` JSON, `model_repository` and `model_version`, which
                are the folder that `model.py` is in.

        Raises:
            CheckpointError: the files beside `model.py` cannot be used.
        """
        self._backend: ModuleType = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {name: one["string_value"] for name, one in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], tensors.MODEL_FOLDER)
        self._vision = parameters[tensors.VISION_MODEL]
        self._projector = parameters[tensors.PROJECTOR_MODEL]
        self._max_patches = int(parameters[tensors.MAX_PATCHES])
        self._vision_config = KimiVLConfig.load(folder / "config.json").vision
        self._rule = ImageRule.load(folder)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Encode one image for each request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:  # noqa: ANN401  the server's classes
        backend = self._backend
        try:
            given = backend.get_input_tensor_by_name(request, tensors.IMAGE.name).as_numpy()
            image = self._patches(given.ravel()[0])
            return backend.InferenceResponse(output_tensors=self._encode(image))
        except Exception as error:  # noqa: BLE001  told to whoever asked
            return backend.InferenceResponse(error=triton_error(backend, error))

    def _patches(self, content: bytes) -> PatchedImage:
        image = self._rule.patchify(load_image(image_source(0, content)))
        found = image.grid.h * image.grid.w
        if found > self._max_patches:
            raise CapacityError(
                f"an image of {image.grid.h} x {image.grid.w} patches does not fit the limit of "
                f"{self._max_patches}; shrink it or build with a larger --max-image-tokens"
            )
        return image

    def _encode(self, image: PatchedImage) -> list[Any]:
        given = [
            self._backend.Tensor(name, np.ascontiguousarray(value))
            for name, value in vision_inputs(image, self._vision_config).items()
        ]
        merged = self._run(self._vision, given, names.MERGED)
        features = self._run(self._projector, [merged], names.FEATURES)
        grid = np.asarray(image.grid, dtype=np.int32)
        return [features, self._backend.Tensor(tensors.GRID.name, grid)]

    def _run(self, model: str, given: list[Any], output: str) -> Any:  # noqa: ANN401  the server's
        """Run a model of the server and give one output, of whatever type it has."""
        response = self._backend.InferenceRequest(
            model_name=model, requested_output_names=[output], inputs=given
        ).exec()
        if response.has_error():
            raise KimiVLError(f"{model}: {response.error().message()}")
        return self._backend.get_output_tensor_by_name(response, output)
