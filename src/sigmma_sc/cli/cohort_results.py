"""Results of a run on several slides: one model and joint niches, and a folder for each slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._files import fresh_folder
from sigmma_sc.cli.cohort import SAMPLE
from sigmma_sc.cli.results import Steps, draw_niches, model_kept, print_retrieval, print_written, say, without_images
from sigmma_sc.cli.runs import SLIDES, write_run
from sigmma_sc.cli.tables import draw_registration, draw_training, write_tables
from sigmma_sc.reporting.settings import settings_of
from sigmma_sc.tissue.setup import common_setup, get_table, stored_setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from sigmma_sc.cli.cohort import Member
    from sigmma_sc.model import SIGMMA

SEPARATOR = "/"
"""Between the sample and the cell in names of rows."""


def finish_cohort(
    model: SIGMMA,
    slides: dict[str, SpatialData],
    members: Sequence[Member],
    left_out: Mapping[str, str],
    out: Path,
    steps: Steps,
    resolution: float | str,
) -> None:
    """Embed all slides, find their niches together, and write to ``out``, which is replaced; after an error nothing is."""
    from sigmma_sc import tl

    with steps("Embedding"):
        model.write_embeddings(slides, overwrite=True)
    scales = model.embedder.towers.embedded
    joint = joint_table(slides, scales)
    with steps("Niches"):
        if scales:
            model.niches = tl.niches(joint, scales, resolution)
            hand_back(joint, slides, scales)
    split = "test" if any((s.tables[_keys.TILES].obs["split"] == "test").any() for s in slides.values()) else "all"
    stores = {member.sample: str(member.source.store.absolute()) for member in members}
    with steps("Scores and files"), model_kept(model), fresh_folder(out) as folder:
        recall = model.evaluate_retrieval(split=split)
        model.save(folder / "model")
        recall.to_csv(folder / "retrieval.csv", index=False)
        pd.concat({k: v.iloc[:, 0] for k, v in model.history.items()}, axis=1).to_csv(folder / "history.csv")
        lacking = write_tables(joint, scales, None, folder, SAMPLE) if scales else []
        draw_training(model, folder)
        for sample, sdata in slides.items():
            place = folder / SLIDES / sample
            place.mkdir(parents=True)
            lacking += [f"{sample}: {sentence}" for sentence in draw_registration(sdata, place)]
            if scales:
                draw_niches(_table(sdata), scales, (), place)
            without_images(sdata).write(place / "cells.zarr")
        settings = settings_of(model, common_setup(slides), joint, None)
        write_run(folder, None, settings, {"slides": stores, "left_out": dict(left_out)})
    say(lacking)
    print_retrieval(recall, split)
    print_written(out)


def _table(sdata: SpatialData) -> AnnData:
    return get_table(sdata, common_setup(sdata))


def joint_table(slides: Mapping[str, SpatialData], scales: Sequence[str]) -> AnnData:
    """Cells of all slides with their embeddings, and the counts of the genes that all have."""
    import anndata

    parts = {}
    for sample, sdata in slides.items():
        table = _table(sdata)
        setup = stored_setup(sdata)
        names = table.uns["spatialdata_attrs"]
        counts = table.X if setup is None or setup.layer is None else table.layers[setup.layer]
        obs = pd.DataFrame(
            {
                "cell_id": table.obs[names["instance_key"]].to_numpy(),
                "region": table.obs[names["region_key"]].astype(str).to_numpy(),
                _keys.COVERED: table.obs[_keys.COVERED].to_numpy(),
            },
            index=table.obs_names,
        )
        embeddings = {_keys.obsm_cells(scale): table.obsm[_keys.obsm_cells(scale)] for scale in scales}
        parts[sample] = anndata.AnnData(counts, obs=obs, var=table.var[[]], obsm=embeddings)
    joint = anndata.concat(parts, label=SAMPLE, index_unique=None, join="inner")
    joint.obs_names = [SEPARATOR.join(pair) for pair in zip(joint.obs[SAMPLE], joint.obs_names, strict=True)]
    joint.uns["spatialdata_attrs"] = {"region_key": "region", "instance_key": "cell_id"}
    return joint


def hand_back(joint: AnnData, slides: Mapping[str, SpatialData], scales: Sequence[str]) -> None:
    """Write joint niches to the tables of the slides, each with the names of all niches."""
    for sample, sdata in slides.items():
        table = _table(sdata)
        own = joint.obs[joint.obs[SAMPLE] == sample]
        for scale in scales:
            for name in (f"sigmma_niche_{scale}", f"sigmma_niche_{scale}_confidence"):
                table.obs[name] = own[name].array
        table.uns[_keys.UNS] = dict(table.uns.get(_keys.UNS, {})) | dict(joint.uns[_keys.UNS])
