"""What the vision graph takes of an image."""

from .. import names
from ..config import VisionConfig
from ..prompt.patches import PatchedImage, position_weights
from .protocol import FloatArray


def vision_inputs(image: PatchedImage, config: VisionConfig) -> dict[str, FloatArray]:
    """Give patches (h, w, 588) and how its rows and columns read the position table."""
    grid = image.grid
    return {
        names.PATCHES: image.patches,
        names.ROW_WEIGHTS: position_weights(grid.h, config.table_height),
        names.COLUMN_WEIGHTS: position_weights(grid.w, config.table_width),
    }
