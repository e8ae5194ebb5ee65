"""Methods of the benchmark. To add one, write a class like those below and put it into ``METHODS``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from sigmma_sc.baselines import BLEEP, CLIP
from sigmma_sc.config import Config
from sigmma_sc.features.data import TissueData
from sigmma_sc.infer.auto import FEWEST_IN_FOLD
from sigmma_sc.infer.predict import Prediction, Query, predict_best, temperature_of
from sigmma_sc.infer.reference import build_reference, encoder_features
from sigmma_sc.infer.scales import joined
from sigmma_sc.model import SIGMMA
from sigmma_sc.tissue.setup import common_setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.split import SplitJson
    from sigmma_sc.tissue.tiling import Tiles

    Embedding = dict[str, NDArray[np.float32]] | None
    Chosen = list[tuple[Slide, Tiles]]
    from sigmma_sc.tissue.setup import Tissue

N_NEIGHBORS = 50
"""Training tiles that retrieval averages, as :meth:`sigmma_sc.SIGMMA.predict_expression` does by default."""


@dataclass(frozen=True)
class Case:
    """What every method is given alike.

    Attributes
    ----------
    sdata
        Object, or objects by name, set up.
    encoder
        Image encoder; ``None`` for the method's own default.
    split
        As for :meth:`sigmma_sc.SIGMMA.train`.
    seed
        Of whatever the method draws, and of the split.
    options
        Of the data set, fields of :class:`sigmma_sc.Config`.
    cache_dir
        Of patch features.

    Examples
    --------
    >>> case = sg.benchmark.Case(sdata, encoder=None, split="blocks", seed=0, options={"n_latent": 16}, cache_dir=None)
    >>> case.split
    'blocks'
    """

    sdata: Tissue
    encoder: ImageEncoder | None
    split: SplitJson
    seed: int
    options: dict[str, Any]
    cache_dir: str | None


class Method:
    """A way to embed tiles; this one knows nothing and embeds nothing, and so predicts the mean of each gene.

    Parameters
    ----------
    case
        Data, split and seed.
    **arguments
        Of the method.

    Examples
    --------
    >>> class Same(sg.benchmark.Method):
    ...     def embed(self, slide, tiles):
    ...         return {"macro": np.ones((len(tiles), 1), np.float32)}, None
    >>> sg.benchmark.METHODS["same"] = Same
    >>> sg.benchmark.MethodSpec(method="same").label  # and in a configuration too
    'same'
    """

    trains: ClassVar[bool] = False
    """Whether there is anything to tune."""

    def __init__(self, case: Case, **arguments: object):
        self.case, self.arguments = case, arguments

    def fit(self, **training: object) -> dict[str, Any]:
        """Train on the split's training tiles; what is worth reporting of it."""
        return {}

    def embed(self, slide: Slide, tiles: Tiles) -> tuple[Embedding, Embedding]:
        """Embeddings of tiles ``(n, d)`` by scale, of image and of transcriptome; ``None`` where it has none."""
        return None, None

    def embed_cells(self) -> dict[str, NDArray[np.float32]] | None:
        """Embeddings of the cells of the object's slides, one under the other, by scale; ``None`` where it has none."""
        return None

    def predict_best(self, chosen: Chosen) -> pd.DataFrame | None:
        """Expression of tiles × genes, each gene by what is best on the validation tiles; ``None`` where it chooses nothing."""
        return None


class Random(Method):
    """Numbers drawn for each tile: what chance is.

    Examples
    --------
    >>> case = sg.benchmark.Case(sdata, encoder=None, split="blocks", seed=0, options={}, cache_dir=None)
    >>> slide = model.resolve()[0]
    >>> image, transcriptome = sg.benchmark.Random(case).embed(slide, slide.tiles)
    >>> image["macro"].shape, transcriptome["macro"].shape
    ((121, 64), (121, 64))
    """

    def embed(self, slide: Slide, tiles: Tiles) -> tuple[Embedding, Embedding]:
        """Two independent draws that depend on seed, slide and place alone."""
        return {"macro": self._drawn(slide, tiles, 0)}, {"macro": self._drawn(slide, tiles, 1)}

    def _drawn(self, slide: Slide, tiles: Tiles, modality: int) -> NDArray[np.float32]:
        name = np.frombuffer(slide.name.encode(), np.uint8)
        rows = []
        for corner in np.round(tiles.origins).astype(np.int64):
            rng = np.random.default_rng([self.case.seed, modality, *name, *corner])
            rows.append(rng.normal(size=64))
        return np.stack(rows).astype(np.float32)


class Frozen(Method):
    """The image encoder as it came: mean of its features over each grid's crops.

    Parameters
    ----------
    case
        Data, split and seed.
    macro
        The coarsest grid alone, which is how encoders are commonly judged.

    Examples
    --------
    >>> encoder = sg.ImageEncoder(lambda x: x.mean((2, 3)), name="mean colour", input_size=16)
    >>> case = sg.benchmark.Case(sdata, encoder, split="blocks", seed=0, options={}, cache_dir=None)
    >>> slide = model.resolve()[0]
    >>> image, transcriptome = sg.benchmark.Frozen(case).embed(slide, slide.tiles)
    >>> {scale: x.shape for scale, x in image.items()}, transcriptome
    ({'micro': (121, 3), 'meso': (121, 3), 'macro': (121, 3)}, None)
    """

    def __init__(self, case: Case, macro: bool = False):
        super().__init__(case, macro=macro)
        from sigmma_sc.encoders.encoder import get_encoder

        setup = common_setup(case.sdata)
        config = Config.of({**case.options, "seed": case.seed}, setup.grids)
        encoder = get_encoder(case.encoder or "stain-stats")
        for size in config.crop_sizes or ():
            encoder.allow(size)
        self.data = TissueData(setup, encoder, config, case.cache_dir)

    def embed(self, slide: Slide, tiles: Tiles) -> tuple[Embedding, Embedding]:
        """Features of the images, and nothing of the transcriptome."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        scales = self.data.setup.scales
        image = dict(zip(scales, self.data.grid_means(slide, tiles, device), strict=True))
        return {scales[-1]: image[scales[-1]]} if self.arguments["macro"] else image, None


class Alignment(Method):
    """SIGMMA, or what is built on it.

    Parameters
    ----------
    kind
        Class of the model.
    case
        Data, split and seed.
    macro
        Align the coarsest scale alone.
    **arguments
        Of the class: options, and what else it takes.

    Examples
    --------
    >>> case = sg.benchmark.Case(sdata, encoder=None, split="blocks", seed=0, options={"n_latent": 16}, cache_dir=None)
    >>> method = sg.benchmark.Alignment(SIGMMA, case, macro=True, edges="full")
    >>> method.model.config.n_latent, method.model.config.edges, method.model.config.loss_weights
    (16, 'full', (0.0, 0.0, 1.0))
    """

    trains = True

    def __init__(self, kind: type[SIGMMA], case: Case, macro: bool = False, **arguments: object):
        super().__init__(case, **arguments)
        settings: dict[str, Any] = {**case.options, **arguments}
        if macro:
            settings["loss_weights"] = (0.0,) * (len(common_setup(case.sdata).grids) - 1) + (1.0,)
        if case.encoder is not None:
            settings["image_encoder"] = case.encoder
        self.model = kind(case.sdata, **{**settings, "seed": case.seed, "cache_dir": case.cache_dir})

    def fit(self, **training: object) -> dict[str, Any]:
        """Train; epochs, and loss and ln(batch) of the last."""
        arguments: dict[str, Any] = {"enable_progress_bar": False, **training}
        self.model.train(split=self.case.split, **arguments)
        last = {name: float(frame.iloc[-1, 0]) for name, frame in self.model.history.items()}
        losses = {name: value for name, value in last.items() if name.startswith("train_")}
        return {"epochs": len(next(iter(self.model.history.values()))), **losses}

    def embed(self, slide: Slide, tiles: Tiles) -> tuple[Embedding, Embedding]:
        """Both towers'."""
        embedded = self.model.embedder.tiles(slide, tiles)
        return embedded.image, embedded.transcriptome

    def embed_cells(self) -> dict[str, NDArray[np.float32]] | None:
        """Of every scale; NaN for cells off the image."""
        if not self.model.embedder.towers.embedded:
            return None
        slides = self.model.embedder.slides(self.model.resolve(), images=False, n_offsets=16)
        cells = {}
        for scale in self.model.embedder.towers.embedded:
            parts = [np.where(slide.covered[:, None], slide.cells[scale], np.nan) for slide in slides]
            cells[scale] = np.concatenate(parts).astype(np.float32)
        return cells

    def predict_best(self, chosen: Chosen) -> pd.DataFrame | None:
        """As ``predict_expression(method="auto")``; ``None`` with too few validation tiles."""
        embedder = self.model.embedder
        reference = build_reference(embedder, self.model.resolve(cells=False))
        if (~reference.train).sum() < 2 * FEWEST_IN_FOLD:
            return None
        embeddings = [(embedder.tiles(slide, tiles), np.arange(len(tiles))) for slide, tiles in chosen]
        features = [encoder_features(embedder, embedding) for embedding, _ in embeddings]
        how = Prediction("auto", "all", N_NEIGHBORS, temperature_of(embedder.towers, "all"))
        values, _, _ = predict_best(Query(joined(embeddings, "image"), np.concatenate(features)), reference, how)
        return pd.DataFrame(values, columns=reference.genes)


METHODS: dict[str, Callable[..., Method]] = {
    "sigmma": partial(Alignment, SIGMMA),
    "sigmma-full": partial(Alignment, SIGMMA, edges="full"),
    "sigmma-none": partial(Alignment, SIGMMA, edges="none"),
    "sigmma-macro": partial(Alignment, SIGMMA, macro=True),
    "sigmma-macro-full": partial(Alignment, SIGMMA, edges="full", macro=True),
    "genes": partial(Alignment, SIGMMA, cells="genes", cell_covariates=False),
    "genes-covariates": partial(Alignment, SIGMMA, cells="genes"),
    "genes-macro": partial(Alignment, SIGMMA, cells="genes", cell_covariates=False, macro=True),
    "bleep": partial(Alignment, BLEEP),
    "clip": partial(Alignment, CLIP, text="clip"),
    "plip": partial(Alignment, CLIP, image_encoder="plip", text="plip"),
    "omiclip": partial(Alignment, CLIP, image_encoder="omiclip", text="omiclip"),
    "gene-sentence": partial(Alignment, CLIP, text="genes"),
    "frozen": Frozen,
    "frozen-macro": partial(Frozen, macro=True),
    "gene-mean": Method,
    "random": Random,
}
"""Methods by name: SIGMMA; its ablations (paper, Table 4, and what is missing there: ``genes`` at three scales, and
``genes-covariates``, which know the tile's total and number of cells as SIGMMA does); the published methods (Tables 1 and
2), ``gene-sentence`` being the recipe of CLIP, PLIP and OmiCLIP with a text tower from scratch; and what needs no training."""
