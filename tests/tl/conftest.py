import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg
from sigmma_sc.infer.reference import Reference

N_KINDS, WIDTH, N_GENES = 4, 8, 12


def tiles_of(kinds, rng, noise=0.3):
    """Expression and embeddings of tiles of some kinds: each kind has three genes and a direction of its own."""
    kinds = np.asarray(kinds)
    expression = rng.poisson(1 + 8 * np.repeat(np.eye(N_KINDS), 3, axis=1)[kinds])
    directions = np.eye(WIDTH)[:N_KINDS]
    towers = {}
    for tower in ("image", "transcriptome"):
        drawn = {
            scale: directions[kinds] + noise * rng.normal(size=(len(kinds), WIDTH)) for scale in ("micro", "macro")
        }
        towers[tower] = {scale: values.astype(np.float32) for scale, values in drawn.items()}
    return np.log1p(expression).astype(np.float16), towers


def an_index(slides, n_reference=400, seed=0, noise=0.3):
    """An index of slides, kinds of tiles by name, and a model whose tiles are of all kinds."""
    rng = np.random.default_rng(seed)
    expression, towers = tiles_of(np.arange(n_reference) % N_KINDS, rng, noise)
    zeros = np.zeros(n_reference, np.int64)
    reference = Reference(
        genes=[f"g{k}" for k in range(N_GENES)],
        library=100.0,
        expression=expression,
        **towers,
        encoder=np.zeros((n_reference, 1), np.float16),
        slide=zeros,
        block=zeros,
        train=np.arange(n_reference) < 0.8 * n_reference,
        position=np.zeros((n_reference, 2), np.float32),
        stain=np.zeros((n_reference, 6), np.float32),
    )
    kinds = np.concatenate([np.asarray(kinds) for kinds in slides.values()])
    names = np.repeat(list(slides), [len(kinds) for kinds in slides.values()])
    number = np.concatenate([np.arange(len(kinds)) for kinds in slides.values()])
    obs = pd.DataFrame(
        {
            "slide": pd.Categorical(names),
            "x": 64.0 + 128 * number,
            "y": 64.0,
            "n_cells": 80,
            "tissue": 1.0,
            "split": pd.Categorical(["unseen"] * len(kinds)),
            "sigmma_alike": 1.0,
        },
        index=[f"{slide}_{k}" for slide, k in zip(names, number, strict=True)],
    )
    return sg.TileIndex(
        obs=obs,
        embeddings=tiles_of(kinds, rng, noise)[1],
        shares={"kind": pd.DataFrame(np.eye(N_KINDS)[kinds], obs.index, [f"k{k}" for k in range(N_KINDS)])},
        reference=reference,
        temperatures={"micro": 0.07, "macro": 0.07},
        tile_size=128.0,
        model="abc",
    )


@pytest.fixture(scope="session")
def make_index():
    return an_index
