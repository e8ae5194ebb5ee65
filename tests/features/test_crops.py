import numpy as np
import pytest
import torch
from PIL import Image

from sigmma_sc.features.crops import cut_crops
from sigmma_sc.tissue.pixels import Canvas, _windows

CPU = torch.device("cpu")
SIZE = 24


@pytest.fixture
def pixels(rng):
    """Rough in places and smooth in others, with glass and shadows."""
    rough = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    out = np.array(rough.resize((300, 260), Image.Resampling.BICUBIC))
    out[100:180] = rng.integers(4, 256, (80, 300, 3))
    out[:, 200:230] = 255
    return out


def canvas_of(pixels, boxes, shift=(0, 0), padding=0):
    """A canvas whose upper left corner is at ``shift``, and crops (x, y, side) on it, ordered."""
    boxes = boxes[np.lexsort((boxes[:, 1], boxes[:, 0], boxes[:, 2]))]
    low, high, inner = _windows(boxes, SIZE, np.array([10**4, 10**4]))
    corner = np.array(shift)
    return Canvas(pixels, np.arange(len(boxes)), low - corner, high - corner, inner, boxes[:, 2], padding), boxes


def cut(*canvases, device=CPU):
    groups = list(cut_crops(canvases, sum(len(canvas.crops) for canvas in canvases), SIZE, device))
    return np.concatenate([crops.numpy() for _, crops in groups])


def by_pillow(pixels, boxes):
    image = Image.fromarray(pixels)
    size = (SIZE, SIZE)
    boxes = [(x, y, x + side, y + side) for x, y, side in boxes]
    return np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)) for box in boxes])


def lattice(side, step, n=4, start=60.0):
    return np.array([(start + step * i, start + step * j, side) for i in range(n) for j in range(n)])


SETS = {
    "upsampled": lattice(9.3, 9.3),
    "downsampled": lattice(37.7, 30.1),
    "much smaller": lattice(80.0, 20.0),
    "overlap by whole rows": lattice(36.0, 9.0),
    "overlap by half a row": lattice(36.0, 9.75),
    "rows apart": lattice(10.0, 37.3),
    "whole pixels": lattice(24.0, 12.0),
}


@pytest.mark.parametrize("boxes", SETS.values(), ids=SETS)
def test_crops_are_those_of_pillow_within_a_grey_level(pixels, boxes):
    canvas, boxes = canvas_of(pixels, boxes)
    difference = np.abs(cut(canvas).astype(int) - by_pillow(pixels, boxes))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02  # halves are rounded to even here, and up by Pillow


def test_a_crop_is_the_same_alone_and_on_another_canvas(pixels, rng):
    drawn = np.column_stack([rng.uniform(60, 150, (20, 2)), rng.uniform(5, 80, 20)])
    canvas, boxes = canvas_of(pixels, np.concatenate([*SETS.values(), drawn]))
    together = cut(canvas)
    for k in range(0, len(boxes), 5):
        alone, _ = canvas_of(pixels[17:, 23:], boxes[k : k + 1], shift=(23, 17))
        np.testing.assert_array_equal(cut(alone), together[k : k + 1])


def test_whole_pixels_are_copied(pixels):
    canvas, _ = canvas_of(pixels, np.array([[70.0, 90, SIZE]]))
    np.testing.assert_array_equal(cut(canvas)[0], pixels[90 : 90 + SIZE, 70 : 70 + SIZE])


@pytest.mark.parametrize("side", [SIZE, 33.3])
def test_black_padding_is_glass_for_the_crops_that_hold_it(pixels, side):
    pixels[60:130, 60:130] = 0
    mended = np.where((pixels == 0).all(axis=2, keepdims=True), 255, pixels).astype(np.uint8)
    canvas, boxes = canvas_of(pixels, lattice(side, 20.0), padding=5)
    assert np.abs(cut(canvas).astype(int) - by_pillow(mended, boxes)).max() <= 1


def test_groups_are_filled_from_several_canvases(pixels):
    canvas, _ = canvas_of(pixels, np.concatenate([SETS["upsampled"], SETS["downsampled"]]))
    groups = list(cut_crops([canvas] * 5, 160, SIZE, CPU))
    assert [len(index) for index, _ in groups] == [128, 32]
    index = np.concatenate([index for index, _ in groups])
    np.testing.assert_array_equal(index, np.tile(np.arange(32), 5))
    crops = torch.cat([crops for _, crops in groups]).numpy().reshape(5, 32, SIZE, SIZE, 3)
    np.testing.assert_array_equal(crops, crops[:1].repeat(5, axis=0))
