import dataclasses

import numpy as np
import pytest

from sigmma_sc.benchmark.scores import DIRECTIONS
from sigmma_sc.benchmark.trial import Expression, Niches, RankKey, Trial, TrialMeta

GENES = np.array(list("vwxyz"))


def drawn_trial(rng, method="a", seed=0, split="blocks", n=60, n_blocks=12, slides=1, scales=("macro",), noise=1.0):
    """A trial of ``n`` tiles a slide in blocks, with ranks and predictions drawn."""
    slide = np.repeat([f"s{k}" for k in range(slides)], n)
    block = np.array([f"{name}#{rng.integers(0, n_blocks)}" for name in slide])
    target = rng.normal(size=(n * slides, len(GENES)))
    ranks = {}
    for direction in DIRECTIONS:
        for scale in scales:
            ranks[RankKey(direction, scale)] = np.concatenate([rng.permutation(n) + 1 for _ in range(slides)])
    expression = {}
    for protocol in ("default", "hest"):
        predicted = target + noise * rng.normal(size=target.shape)
        expression[protocol] = Expression(
            GENES, target.astype(np.float32), np.zeros(5, np.float32), {protocol: predicted.astype(np.float32)}
        )
    meta = TrialMeta("d", split, method, seed, n_train=10, seconds=36.0, versions={"torch": "2.0"})
    return Trial(meta, slide, block, ranks, expression)


def with_niches(trial, labels, xy, reference=None):
    niches = Niches({"macro": labels}, np.zeros(len(labels), int), xy, reference)
    return dataclasses.replace(trial, niches=niches)


@pytest.fixture
def make_trial(rng):
    """Make a trial; every call draws on."""
    return lambda **arguments: drawn_trial(rng, **arguments)


@pytest.fixture(scope="session")
def draw_trial():
    """Make a trial with a generator of one's own."""
    return drawn_trial


@pytest.fixture(scope="session")
def add_niches():
    return with_niches
