"""Coverage of prediction intervals on the test tiles of a section, and how many tiles are withheld there and on another tissue.

    python benchmarks/unseen_tissue.py STORE MODEL [--other STORE --microns-per-pixel 2.006] [--cache FOLDER]

STORE is a SpatialData store, MODEL the folder of a model trained on it with a split that has validation and test tiles. Of
the other store only the image is used, or the part of it in --window (x0 y0 x1 y1, px).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.infer.evaluate import chosen_counts
from sigmma_sc.metrics.expression import log_expression

METHODS = ("retrieval", "ridge", "auto")


def own_end(model, level, withhold):
    """Coverage over test tiles and genes, for each method; and the share of test tiles that is withheld."""
    chosen = model.embed_split(split="test")
    slides = [e.slide.name for e, _ in chosen]
    rows = [f"{name}_{t}" for name, (_, which) in zip(slides, chosen, strict=True) for t in which]
    for method in METHODS:
        found = model.predict_expression(method=method, interval=level, withhold=None)[rows]
        truth = log_expression(chosen_counts(chosen, list(found.var_names)), found.uns["sigmma"]["library"]).toarray()
        inside = (found.layers["lower"] <= truth) & (truth <= found.layers["upper"])
        kept = (found.obs["sigmma_alike"] > withhold).to_numpy()
        by_gene = np.quantile(inside.mean(axis=0), [0.05, 0.5, 0.95])
        width = (found.layers["upper"] - found.layers["lower"]).mean()
        print(
            f"{method}: {level:.0%} intervals of {found.uns['sigmma']['n_interval_blocks']} blocks cover {inside.mean():.1%} of "
            f"{len(rows)} test tiles × genes ({inside[kept].mean():.1%} of those kept); by gene 5, 50, 95 %: "
            f"{', '.join(f'{v:.0%}' for v in by_gene)}; mean width {width:.2f}"
        )
    causes = found.obs["sigmma_least_alike"][~kept].value_counts().to_dict()
    print(f"withheld at {withhold:g}: {(~kept).mean():.1%} of the test tiles {causes}")


def elsewhere(model, store, microns_per_pixel, window, withhold):
    """Share of the tiles of another tissue that is withheld."""
    image = sd.SpatialData(images={"he_image": sd.read_zarr(store)["he_image"]})
    if window:
        image = sd.bounding_box_query(
            image,
            axes=("x", "y"),
            min_coordinate=window[:2],
            max_coordinate=window[2:],
            target_coordinate_system="global",
        )
    SIGMMA.setup_spatialdata(
        image, table_key=None, microns_per_pixel=microns_per_pixel, tile_size=model.setup.tile_size
    )
    found = model.predict_expression(image, withhold=withhold)
    tissue = (found.obs["tissue"] >= 0.05).to_numpy()
    gone = np.isnan(found.X).all(axis=1)[tissue].mean()
    print(f"{store}: {gone:.1%} of {tissue.sum()} tiles withheld. {found.uns['sigmma']['unlike']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("--other")
    parser.add_argument("--microns-per-pixel", type=float)
    parser.add_argument("--window", type=float, nargs=4)
    parser.add_argument("--interval", type=float, default=0.9)
    parser.add_argument("--withhold", type=float, default=0.01)
    parser.add_argument("--cache")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model = SIGMMA.load(given.model, sd.read_zarr(given.store), cache_dir=given.cache)
    print(f"split: {model.data.roles.split}, encoder: {model.image_encoder.name}")
    own_end(model, given.interval, given.withhold)
    if given.other is not None:
        elsewhere(model, given.other, given.microns_per_pixel, given.window, given.withhold)


if __name__ == "__main__":
    main()
