"""What the registration check says of real slides, as they are and with their alignment spoilt in five ways.

Each column changes the transform of the H&E in memory, never a store. The table in docs/registration.md is printed by

    python benchmarks/registration.py FOLDER

where FOLDER holds pancreas_xenium.zarr, lung_xenium_mini.zarr, kidney_visiumhd.zarr and breast_st.zarr.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import spatialdata
from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation

import sigmma_sc as sg
from sigmma_sc.registration.check import SIGNIFICANT
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

SECTIONS = ("C2", "C3", "C4", "C5", "C6")
SETUPS = {
    "pancreas_xenium": {},
    "lung_xenium_mini": {"microns_per_pixel": 2.125},
    "kidney_visiumhd": {"microns_per_pixel": 2.006},
    "breast_st": {
        "image_key": {f"{s}_spots": f"{s}_he" for s in SECTIONS},
        "coordinate_system": {f"{s}_spots": s for s in SECTIONS},
        "microns_per_pixel": 0.687,
        "tile_size": 800,
    },
}


def misfits(width: float, height: float, microns_per_pixel: float) -> dict[str, np.ndarray]:
    """Affines ``(3, 3)`` over (x, y, 1) that the cells of a slide suffer in the pixels of its image, by name."""
    matrices = {
        "as it is": np.eye(3),
        "axes swapped": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        "shifted by 20 µm": [[1, 0, 20 / microns_per_pixel], [0, 1, 0], [0, 0, 1]],
        "mirrored": [[-1, 0, width], [0, 1, 0], [0, 0, 1]],
        # The pixels of a usual 40x scan, taken for those of the Xenium morphology image.
        "pixel size wrong": np.diag([0.2125 / 0.2738, 0.2125 / 0.2738, 1]),
        "turned by 90°": [[0, -1, (width + height) / 2], [1, 0, (height - width) / 2], [0, 0, 1]],
    }
    return {name: np.asarray(matrix, dtype=float) for name, matrix in matrices.items()}


def spoil(sdata: spatialdata.SpatialData, misfit: str) -> None:
    """Change the transform of every H&E so that its cells suffer a misfit."""
    for slide in resolve_slides(sdata, stored_setup(sdata)):
        matrix = misfits(slide.width, slide.height, slide.microns_per_pixel)[misfit]
        image = sdata.images[slide.image_key]
        moved = Affine(np.linalg.inv(matrix), input_axes=("x", "y"), output_axes=("x", "y"))
        right = get_transformation(image, slide.coordinate_system)
        set_transformation(image, Sequence([moved, right]), slide.coordinate_system)


def verdicts(store: Path, misfit: str, **setup) -> tuple[str, float]:
    """Verdicts of a store's slides under a misfit, in words, and the seconds that the check took."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata = spatialdata.read_zarr(store)
        sg.SIGMMA.setup_spatialdata(sdata, **setup)
        spoil(sdata, misfit)
        start = time.perf_counter()
        report = sg.pp.check_registration(sdata)
    seconds = time.perf_counter() - start
    told = Counter(report.verdict)
    words = [f"{name} ({n} of {len(report)})" if len(told) > 1 else name for name, n in told.most_common()]
    peaks = report[report.best_score >= SIGNIFICANT]
    words += [
        f"score {p.score:.0f}, peak of {p.best_score:.0f} at ({p.shift_x:+.0f}, {p.shift_y:+.0f}) µm"
        for p in peaks.itertuples()
    ]
    words += [f"{report.on_tissue.min():.0%} on tissue"]
    return "; ".join(words), seconds


def main() -> None:
    """Print the table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prefix", default="", help="of the names of the stores")
    options = parser.parse_args()
    names = list(misfits(1, 1, 1))
    print("| slide | " + " | ".join(names) + " | seconds |")
    print("| --- " * (len(names) + 2) + "|")
    for slide, setup in SETUPS.items():
        store = options.folder / f"{options.prefix}{slide}.zarr"
        cells = [verdicts(store, name, **setup) for name in names]
        seconds = [s for _, s in cells]
        print(
            f"| `{slide}` | "
            + " | ".join(words for words, _ in cells)
            + f" | {min(seconds):.1f} to {max(seconds):.1f} |"
        )


if __name__ == "__main__":
    main()
