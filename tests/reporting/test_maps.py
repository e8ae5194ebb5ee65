import json
from types import SimpleNamespace

import numpy as np

from sigmma_sc.reporting.genes import TopGenes
from sigmma_sc.reporting.maps import CellValues, cell_values, packed_cells

LIMIT = 15_000_000


def test_cells_off_the_image_are_left_out(run, decode):
    sdata, model = run
    (slide,) = model.resolve()
    xy = slide.xy.copy()
    xy[5] = -1
    moved = SimpleNamespace(
        rows=slide.rows, xy=xy, width=slide.width, height=slide.height, under_image=(xy >= 0).all(axis=1)
    )
    found = packed_cells(moved, cell_values(sdata["table"], ["micro"], "sigmma_niche", None))
    assert found["n"] == len(xy) - 1
    assert 5 not in decode(found["row"])
    assert "gene" not in found


def test_cells_of_a_large_slide_leave_room_in_15_megabytes(rng):
    n, n_genes = 120_000, 480
    xy = rng.random((n, 2)) * (30_000, 20_000)
    slide = SimpleNamespace(rows=np.arange(n), xy=xy, width=30_000, height=20_000, under_image=np.ones(n, bool))
    niche = {scale: rng.integers(-1, 30, n) for scale in ("micro", "meso", "macro")}
    genes = TopGenes(rng.integers(-1, n_genes, (n, 5)), rng.integers(0, 256, (n, 5)).astype(np.uint8))
    values = CellValues(niche, dict.fromkeys(niche, 30), {scale: rng.random(n) for scale in niche}, genes, n_genes)
    size = len(json.dumps(packed_cells(slide, values)))
    # Position, row, niches and confidences, genes and counts: 4 + 4 + 6 + 10 + 5 bytes, in base64.
    assert abs(size - n * 29 * 4 / 3) < 2_000
    # An image of 1.5 million px takes 0.8 MB at most as JPEG, and 40 niches of three scales 3 tiles of 6 kB each.
    assert size + 4 / 3 * (800_000 + 3 * 40 * 3 * 6_000) < LIMIT
