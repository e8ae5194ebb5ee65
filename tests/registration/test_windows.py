import numpy as np
import pytest

from sigmma_sc.registration.windows import overlay_windows, small_picture
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import slides_of


def test_windows_hold_their_cells(tiny):
    (slide,) = slides_of(tiny)
    seen = list(overlay_windows(slide, 3, 50.0, seed=0))
    assert len(seen) == 3
    microns = slide.xy * slide.microns_per_pixel
    for pixels, points, extent in seen:
        assert pixels.shape == (*pixels.shape[:1] * 2, 3)
        assert extent == pytest.approx(50, rel=0.05)
        assert ((points >= 0) & (points < extent)).all()
        # The same cells, moved: some corner takes every point to a cell.
        corners = microns - points[0]
        corner = corners[np.argmin([np.abs(microns - c - points[-1]).sum(axis=1).min() for c in corners])]
        apart = np.linalg.norm((microns - corner)[None] - points[:, None], axis=2).min(axis=1)
        np.testing.assert_allclose(apart, 0, atol=1e-6)


def test_the_seed_decides(tiny):
    (slide,) = slides_of(tiny)
    first, again, other = (next(overlay_windows(slide, 1, None, seed))[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.allclose(first, other)


def test_the_small_picture_is_the_image(tiny):
    (slide,) = slides_of(tiny)
    pixels = image_levels(slide.sdata, slide.image_key)[0].to_numpy().transpose(1, 2, 0).astype(float)
    picture = small_picture(slide, 100).astype(float)
    assert max(picture.shape[:2]) == 100
    # Means over quarters do not depend on how the pixels between are resampled.
    for rows in (0, 1):
        for columns in (0, 1):
            means = []
            for one in (pixels, picture):
                half = np.array(one.shape[:2]) // 2
                means.append(
                    one[rows * half[0] : (rows + 1) * half[0], columns * half[1] : (columns + 1) * half[1]].mean((0, 1))
                )
            np.testing.assert_allclose(*means, atol=3)
