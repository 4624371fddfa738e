"""What each patch of each crop shows: the dense labels that teach the vision tower, from the scene itself.

Used in training only. A label is computed by taking a patch's centre back through the HD resize to the
scene's own pixels, for the global view and every local crop alike.

Shapes: N crops of a picture, the global view first; P patches of a crop, row by row; 4 label fields.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ray_job.demo.pictures import COLOURS, DIGITS, SHAPES, Item, Scene
from ray_job.models.phi3_vision.image_processing import HDSize

# Label fields, in order, with their number of classes; class 0 is "nothing here" everywhere.
NAMES = (*SHAPES, *DIGITS)
IGNORED = -100  # where a sheet's characters have no place
FIELDS = {"name": len(NAMES) + 1, "colour": len(COLOURS) + 1, "is_centre": 2, "place": 5}

_NAME_IDS = {name: number for number, name in enumerate(NAMES, 1)}
_COLOUR_IDS = {name: number for number, name in enumerate(COLOURS, 1)}
_SHRINK = 0.9  # a patch that only touches the rim of a shape is not asked about it
_CAPITAL_HEIGHT = 0.72  # of the font size


def patch_targets(
    scene: Scene, size: HDSize, num_patches_side: int, *, is_overview_padded: bool = True
) -> npt.NDArray[np.int64]:
    """int64 (N, P, 4): the fields of `FIELDS` for every patch. The overview shows the padding too, or is stretched."""
    whole = (0, 0, size.padded_width, size.padded_height)
    picture = (*_padding(size), size.resized_width, size.resized_height)
    views = [_labels(scene, size, num_patches_side, *(whole if is_overview_padded else picture))]
    for row in range(size.rows):
        for col in range(size.cols):
            left, top = col * size.crop_size, row * size.crop_size
            views.append(_labels(scene, size, num_patches_side, left, top, size.crop_size, size.crop_size))
    return np.stack(views)


def _labels(
    scene: Scene, size: HDSize, side: int, left: float, top: float, width: float, height: float
) -> npt.NDArray[np.int64]:
    """(P, 4) for one view that shows a rectangle of the HD picture."""
    steps = (np.arange(side) + 0.5) / side
    to_x, to_y = scene.width / size.resized_width, scene.height / size.resized_height
    pad_x, pad_y = _padding(size)
    x_P = np.tile((left + steps * width - pad_x) * to_x, side)
    y_P = np.repeat((top + steps * height - pad_y) * to_y, side)
    half_patch = width / side / 2 * to_x, height / side / 2 * to_y
    labels_P4 = np.zeros((side * side, len(FIELDS)), np.int64)
    for item in scene.items:
        _mark(labels_P4, item, np.abs(x_P - item.x), np.abs(y_P - item.y), half_patch)
    return labels_P4


def _padding(size: HDSize) -> tuple[int, int]:
    """Pixels of the bands before and after the picture's shorter side: left, top."""
    return (size.padded_width - size.resized_width) // 2, (size.padded_height - size.resized_height) // 2


def _mark(
    labels_P4: npt.NDArray[np.int64],
    item: Item,
    dx_P: npt.NDArray[np.float64],
    dy_P: npt.NDArray[np.float64],
    half_patch: tuple[float, float],
) -> None:
    half_height = item.half_height * (_SHRINK if item.is_shape else _CAPITAL_HEIGHT)
    covers_P = (dx_P <= item.half_width * _SHRINK) & (dy_P <= half_height)
    # The patch with the centre, both where it is on an edge: items smaller than a patch are labelled too.
    is_centre_P = (dx_P <= half_patch[0]) & (dy_P <= half_patch[1])
    place = IGNORED if item.place is None else 0 if item.is_shape else item.place + 1
    labels_P4[covers_P | is_centre_P] = (_NAME_IDS[item.name], _COLOUR_IDS[item.colour], 0, place)
    labels_P4[is_centre_P, 2] = 1
