"""SIGMMA, the face of the package."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sigmma_sc._checks import is_number, require_choice, require_divides, require_positive, require_whole
from sigmma_sc.config import Config
from sigmma_sc.errors import ExistsError, NotTrainedError, SetupError
from sigmma_sc.tissue.setup import Setup, common_setup, get_table, objects_of, register, stored_setup
from sigmma_sc.features.data import TissueData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from spatialdata import SpatialData
    from xarray import Dataset

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.infer.embed import SlideEmbedding
    from sigmma_sc.infer.reference import Reference

    Tissue = SpatialData | dict[str, SpatialData]


class SIGMMA:
    """Multi-scale alignment of H&E and cell graphs (Jeong et al., arXiv 2511.15464).

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`setup_spatialdata`.
    image_encoder
        Name in :func:`sigmma_sc.list_encoders`, name of a timm model, or a :class:`sigmma_sc.ImageEncoder`. The default is
        embedded: stain and texture statistics that need no download. It is frozen unless ``regime`` says otherwise.
    n_latent
        Width of the shared space and of the cell embeddings (our choice; the paper is silent).
    preset
        ``"paper"`` for the method as published, as far as it is known: the image encoder is trained as a whole, cells are told
        apart by their profiles alone, and slides are not standardised one by one. Switches that are given go before it.
    cache_dir
        Folder that keeps the encoder's patch features from one session to the next, as float16. Models share it, and may use
        it at the same time. Features are known by image, encoder and crop; the page *Method* tells what that covers. It is
        not saved with the model.
    **switches
        Any other field of :class:`sigmma_sc.Config`: ``edges``, ``n_neighs``, ``radius``, ``regime``, ``loss_weights``,
        ``temperature``, ``negatives``, ``seed`` …

    Raises
    ------
    SetupError
        A switch does not exist or is out of range.
    EncoderError
        The encoder cannot be had, or not be used as the switches say.

    Examples
    --------
    >>> sdata = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(sdata, tile_size=64)
    >>> model = SIGMMA(sdata)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.write_embeddings()
    >>> sdata["table"].obsm["X_sigmma_micro"].shape
    (500, 128)
    """

    def __init__(
        self,
        sdata: Tissue,
        image_encoder: str | ImageEncoder = "stain-stats",
        n_latent: int = 128,
        *,
        preset: Literal["paper"] | None = None,
        cache_dir: str | Path | None = None,
        **switches: Any,
    ):
        from sigmma_sc.encoders.encoder import get_encoder

        self.sdata = sdata
        self.setup = common_setup(sdata)
        self.config = Config.of({"n_latent": n_latent, **switches}, self.setup.grids, preset)
        self.image_encoder = get_encoder(image_encoder)
        if self.config.regime != "frozen":
            from sigmma_sc.encoders.tuning import require_tunable

            require_tunable(self.image_encoder, self.config)
        for size in self.config.crop_sizes or ():
            self.image_encoder.allow(size)
        self.data = TissueData(self.setup, self.image_encoder, self.config, cache_dir)
        self.options: dict[str, Any] = {}  # of methods that are built on this one
        self.module = None
        self.trainer = None
        self.history_: dict[str, pd.DataFrame] | None = None
        self.is_trained_ = False
        self.epochs_ = 0
        self._reference: Reference | None = None
        self._slides = self.data.slides(sdata)

    @staticmethod
    def setup_spatialdata(
        sdata: Tissue,
        image_key: str | dict[str, str] = "he_image",
        table_key: str | None = "table",
        coordinate_system: str | dict[str, str] = "global",
        layer: str | None = None,
        features_key: str | None = None,
        sample_key: str | None = None,
        microns_per_pixel: float | dict[str, float] | None = None,
        tile_size: float = 128.0,
        grids: Sequence[int] = (4, 2, 1),
    ) -> None:
        """Check an object and store with it how to read it, in ``sdata.attrs["sigmma"]``.

        Parameters
        ----------
        sdata
            Object, or objects by name. Several regions and images in one object are fine.
        image_key
            H&E image, or image by region of the table.
        table_key
            Table of cells; ``None`` for a slide of H&E alone.
        coordinate_system
            System that image and cells share, or system by region.
        layer
            Layer of raw counts; ``None`` for ``X``.
        features_key
            Key of ``obsm`` with an embedding of the cells; ``None`` for PCA of log-normalised counts.
        sample_key
            Column of ``obs`` that names donor or section; ``None`` takes each region for a sample.
        microns_per_pixel
            µm per H&E pixel at full resolution, or by region; ``None`` takes it from the transforms.
        tile_size
            Side of a tile in µm (128 in the paper).
        grids
            Blocks per side of a tile for each scale, fine to coarse: 32, 64 and 128 µm by default.

        Raises
        ------
        SetupError, MissingKeyError, PixelSizeError
            A name does not exist, or the object does not fit; nothing is stored then.

        Warns
        -----
        RegistrationWarning
            The cells do not seem to lie on their nuclei.

        Examples
        --------
        >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
        >>> SIGMMA.setup_spatialdata(tissue, tile_size=64, grids=(2, 1))
        >>> tissue.attrs["sigmma"]["tile_size"]
        64
        """
        setup = Setup(
            image_key=image_key, table_key=table_key, coordinate_system=coordinate_system, layer=layer,
            features_key=features_key, sample_key=sample_key, microns_per_pixel=microns_per_pixel,
            tile_size=tile_size, grids=tuple(grids),
        )  # fmt: skip
        for one in objects_of(sdata).values():
            register(one, setup)

    def train(
        self,
        max_epochs: int = 60,
        batch_size: int = 128,
        split: str | Mapping[str, Sequence[str]] = "auto",
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        precision: str = "auto",
        *,
        stride: float | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        encoder_lr: float | None = None,
        augment: bool | None = None,
        chunk_size: int | None = None,
        early_stopping: bool = False,
        early_stopping_patience: int = 10,
        checkpoint_dir: str | Path | None = None,
        ckpt_path: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the towers; calling it again trains on.

        A call that does not end, for an error or an interruption, leaves the model as it was before; with ``checkpoint_dir`` the
        same call takes up where it ended. Slides that the model has not seen, as after :meth:`load` with another object, are
        split by the call that first trains on them.

        Parameters
        ----------
        max_epochs
            Passes over the tissue; the rate of learning falls to a hundredth in their course.
        batch_size
            Tiles in a batch, over all devices.
        split
            ``"auto"`` (whole samples if there are three or more, spatial blocks otherwise), ``"sample"``, ``"blocks"``,
            ``"end"`` (one end of each section), ``"random"`` (leaks; warns), ``"none"`` (train on everything), or
            ``{"test": [samples], "val": [samples]}``, where ``"val"`` may be ``"blocks"`` of the samples that are left.
        accelerator, devices, precision
            As Lightning's, and so are ``num_nodes`` and ``strategy``; negatives are gathered from all devices. ``"auto"``
            precision is bfloat16 autocast on a GPU that has it, float32 elsewhere.
        stride
            Step in µm of the lattice on which training tiles may be cut; by default the side of the finest grid's blocks, a
            quarter of a tile, for twice the patches of tiles side by side. Each epoch passes over every slide once, its tiles cut at an
            offset drawn anew.
        lr, weight_decay
            Of AdamW.
        encoder_lr
            Of the image encoder, where it is trained; ``None``: 1e-4 for adapters, 2e-5 otherwise (our choices).
        augment
            Turn, mirror and restain tiles at random; ``None``: where the image encoder is trained.
        chunk_size
            Crops that pass an encoder in training at once: more are faster, fewer need less memory, and neither changes the
            result. ``None``: 64 on a GPU, 4 elsewhere.
        early_stopping, early_stopping_patience
            End when the validation loss has not improved for this many epochs, and keep the weights of its lowest; otherwise those
            of the last epoch are kept. Without validation tiles there is nothing to stop by, and all epochs are run.
            scvi-tools' other ``early_stopping_*`` arguments may be given beside them.
        checkpoint_dir
            Folder in which the state of training is kept after every epoch, ``last.safetensors``. If it is there already,
            training takes up from it, so that the same script, run again after it was killed, ends as if it had never been:
            with the same weights and history, to the last bit on one CPU with one number of threads. A finished run only
            returns.
        ckpt_path
            Checkpoint to take up from, where it is not the one in ``checkpoint_dir``: a file, or a folder that holds one.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        SetupError
            A value is out of range, or the checkpoint is of another run; the message names what differs.

        Examples
        --------
        >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
        >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
        >>> small = SIGMMA(tissue, n_latent=16)
        >>> small.train(max_epochs=2, enable_progress_bar=False)
        >>> small.train(max_epochs=1, enable_progress_bar=False)  # trains on
        >>> len(small.history["train_loss_epoch"])
        3
        """
        from sigmma_sc.train.fit import fit

        tuning = {"encoder_lr": encoder_lr, "augment": augment, "chunk_size": chunk_size}
        require_whole(max_epochs, "max_epochs")
        require_whole(batch_size, "batch_size")
        if batch_size < 2:
            raise SetupError(f"batch_size={batch_size} leaves no negatives; use at least 2, better 64 or more.")
        require_positive(lr, "lr")
        if not is_number(weight_decay) or weight_decay < 0:
            raise SetupError(f"weight_decay={weight_decay!r} must be 0 or more.")
        if encoder_lr is not None:
            require_positive(encoder_lr, "encoder_lr")
        if chunk_size is not None:
            require_whole(chunk_size, "chunk_size")
        for name, value in tuning.items():
            if value and self.config.regime == "frozen":
                raise SetupError(
                    f"{name}={value!r} is for an image encoder in training, and this one is frozen. Make the model with "
                    "regime='lora', 'last_k' or 'full'."
                )
        tuning["augment"] = self.config.regime != "frozen" if augment is None else augment
        stride = self.setup.tile_size / self.setup.grids[0] if stride is None else stride
        require_divides(stride, self.setup.tile_size)
        fit(
            self, split, stride, batch_size, {"lr": lr, "weight_decay": weight_decay}, tuning, checkpoint_dir, ckpt_path,
            max_epochs=max_epochs, accelerator=accelerator, devices=devices, precision=precision,
            early_stopping=early_stopping, early_stopping_patience=early_stopping_patience, **trainer_kwargs,
        )  # fmt: skip

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Losses by epoch: ``train_loss_epoch``, ``validation_loss``, each scale's, and ln(batch) beside them.

        >>> loss = model.history["train_loss_epoch"]["train_loss_epoch"]
        >>> len(loss), bool(loss.iloc[-1] < loss.iloc[0])
        (120, True)
        """
        return self.history_ or {}

    @property
    def device(self) -> torch.device:
        """Where the towers are.

        >>> model.to_device("cpu")
        >>> model.device
        device(type='cpu')
        """
        return next(self._trained().parameters()).device

    def to_device(self, device: str | torch.device) -> None:
        """Move the towers.

        Examples
        --------
        >>> model.to_device("cpu")
        >>> model.device.type
        'cpu'
        """
        self.module.to(device)

    def get_latent_representation(
        self, sdata: Tissue | None = None, scale: str = "micro", stride: float | None = None
    ) -> Any:
        """Cell embeddings of one scale.

        Parameters
        ----------
        sdata
            Another object with the same setup; ``None`` for the one trained on.
        scale
            ``"micro"``, ``"meso"``, ``"macro"``, or ``"all"`` side by side.
        stride
            Average each cell over all grids of tiles moved by this step in µm, which lowers the seams at tile borders at
            ``(tile_size / stride)²`` times the cost; ``None`` for one grid.

        Returns
        -------
        ``(n_obs, d)`` float32, rows in the order of the table; NaN for cells that do not lie under the image, of which a
        :class:`~sigmma_sc.errors.CoverageWarning` tells. For a dict of objects, a dict of arrays.

        Examples
        --------
        >>> model.get_latent_representation(scale="meso").shape
        (5000, 64)
        >>> model.get_latent_representation(scale="all").shape  # micro, meso and macro
        (5000, 192)
        """
        from sigmma_sc.store.write import cell_matrices

        if not self._trained().embedded:
            raise SetupError("A model with cells='genes' embeds tiles, not cells. Use get_tile_representation().")
        require_choice(scale, (*self.module.embedded, "all"), "scale")
        embeddings = self._embed(sdata, images=False, stride=stride)
        tissue = objects_of(self.sdata if sdata is None else sdata)
        out = {}
        for name, one in tissue.items():
            cells = cell_matrices(self, one, embeddings)
            out[name] = np.concatenate(list(cells.values()), axis=1) if scale == "all" else cells[scale]
        return out if isinstance(self.sdata if sdata is None else sdata, dict) else next(iter(out.values()))

    def get_tile_representation(
        self, sdata: Tissue | None = None, modality: Literal["image", "transcriptome"] = "image", scale: str = "macro"
    ) -> AnnData:
        """Tile embeddings in the shared space.

        Parameters
        ----------
        sdata
            Another object; with ``modality="image"`` it may hold no table (set up with ``table_key=None``).
        modality
            Which tower.
        scale
            One scale, or ``"all"``: the scales' unit vectors side by side.

        Returns
        -------
        AnnData with one row a tile of the grid that covers each image; ``obs`` has slide, corner in px (x, y), number of
        cells, share of stained tissue and split, ``obsm["spatial"]`` the centre in px.

        Examples
        --------
        >>> tiles = model.get_tile_representation(modality="image", scale="macro")
        >>> tiles.shape
        (121, 64)
        >>> held_out = tiles[tiles.obs["split"] == "test"]
        >>> held_out.n_obs
        17
        """
        from anndata import AnnData

        from sigmma_sc.store.write import at_scale, tile_obs

        require_choice(modality, ("image", "transcriptome"), "modality")
        require_choice(scale, (*self._trained().aligned, "all"), "scale")
        embeddings = self._embed(sdata, images=modality == "image", cells=modality == "transcriptome")
        if modality == "transcriptome" and any(e.slide.region is None for e in embeddings):
            raise SetupError(
                "modality='transcriptome' needs cells, and the object was set up with table_key=None. Use modality='image'."
            )
        matrix = np.concatenate([at_scale(getattr(e, modality), scale) for e in embeddings])
        obs = pd.concat([tile_obs(self, e) for e in embeddings])
        centres = np.concatenate([e.tiles.origins + e.tiles.side / 2 for e in embeddings])
        return AnnData(X=matrix, obs=obs, obsm={"spatial": centres})

    def get_attention(
        self, tiles: Sequence[str], sdata: Tissue | None = None, when: Literal["before", "after"] = "after"
    ) -> Dataset:
        """Where the image encoder's class token looks on some tiles, head by head (paper, Fig. 3).

        Each tile is one crop, as at a grid of 1. :func:`sigmma_sc.pl.attention` draws the result.

        Parameters
        ----------
        tiles
            Names of tiles, as in ``obs_names`` of :meth:`get_tile_representation` and of ``tables["sigmma_tiles"]``.
        sdata
            Another object, with or without a table; ``None`` for the one trained on.
        when
            The encoder before or after alignment. A frozen encoder is the same.

        Returns
        -------
        Dataset of ``attention`` (tile, head, row, column), the last block's softmax weights from the class token to each
        patch, and ``image`` (tile, y, x, channel), the crops that the encoder saw, uint8 RGB. Coordinates of each tile:
        ``slide``, ``image_key``, ``coordinate_system``, ``microns_per_pixel``; its corner ``x0``, ``y0`` and ``side`` in px of
        the full-resolution image.

        Raises
        ------
        EncoderError
            The encoder is no vision transformer with a class token.
        MissingKeyError
            There is no such tile.

        Examples
        --------
        >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
        >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
        >>> encoder = sg.ImageEncoder.from_timm("vit_tiny_patch16_224", img_size=32, depth=1)  # random weights
        >>> small = SIGMMA(tissue, image_encoder=encoder)
        >>> small.train(max_epochs=1, enable_progress_bar=False)
        >>> dict(small.get_attention(["cell_circles_40"])["attention"].sizes)
        {'tile': 1, 'head': 3, 'row': 2, 'column': 2}
        """
        from sigmma_sc.infer.attention import tile_attention

        self._trained()
        require_choice(when, ("before", "after"), "when")
        return tile_attention(self, tiles, self._resolve(sdata, cells=False), when)

    def write_embeddings(
        self, sdata: Tissue | None = None, overwrite: bool = False, stride: float | None = None
    ) -> None:
        """Write embeddings into the object.

        Cells get ``obsm["X_sigmma_<scale>"]`` and ``obs["sigmma_covered"]``; tiles get ``tables["sigmma_tiles"]`` with
        both towers' embeddings in ``obsm`` and their squares in ``shapes["sigmma_tiles_<region>"]``; parameters go to
        ``uns["sigmma"]``.

        Parameters
        ----------
        sdata
            Another object; ``None`` for the one trained on.
        overwrite
            Replace what an earlier call wrote.
        stride
            As for :meth:`get_latent_representation`; tile embeddings are not affected.

        Raises
        ------
        ExistsError
            A key exists and ``overwrite`` is not set; nothing is written then.

        Examples
        --------
        >>> model.write_embeddings(overwrite=True)
        >>> sorted(key for key in adata.obsm if key.startswith("X_sigmma"))
        ['X_sigmma_macro', 'X_sigmma_meso', 'X_sigmma_micro']
        >>> sdata["sigmma_tiles"].n_obs
        121
        """
        from sigmma_sc.store.write import cell_matrices, existing_keys, tile_obs, write_cells, write_tiles

        tissue = objects_of(self.sdata if sdata is None else sdata)
        found = [key for one in tissue.values() for key in existing_keys(one, stored_setup(one) or self.setup)]
        if found and not overwrite:
            raise ExistsError(f"{', '.join(found)} exist already. Pass overwrite=True to replace them.")
        embeddings = self._embed(sdata, stride=stride)
        for one in tissue.values():
            here = [e for e in embeddings if e.slide.sdata is one]
            setup = stored_setup(one) or self.setup
            params = {
                **setup.to_json(),
                **self.config.to_json(),
                "image_encoder": self.image_encoder.name,
                "inference_stride": stride,
            }
            if any(e.slide.region is not None and e.cells for e in here):
                write_cells(get_table(one, setup), cell_matrices(self, one, here), params)
            write_tiles(one, here, [tile_obs(self, e) for e in here], params)

    def evaluate_retrieval(self, sdata: Tissue | None = None, split: str = "test") -> pd.DataFrame:
        """Cross-modal retrieval among the tiles of each slide (Task 2, paper section 6.2; METHOD: evaluation).

        Parameters
        ----------
        sdata
            Another object; all its tiles are candidates unless it was trained on.
        split
            ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

        Returns
        -------
        One row a slide, direction and scale: recall at 5, 10 and 15 %, median rank, pool size and chance.

        Examples
        --------
        >>> table = model.evaluate_retrieval()
        >>> table.loc[table["scale"] == "all", ["direction", "pool", "chance@10%"]].round(2)
                     direction  pool  chance@10%
        3  image→transcriptome    17        0.12
        7  transcriptome→image    17        0.12
        >>> bool(table["recall@10%"].mean() > table["chance@10%"].mean())
        True
        """
        from sigmma_sc.metrics.retrieval import retrieval_table
        from sigmma_sc.infer.evaluate import chosen_tiles

        chosen = chosen_tiles(self, sdata, split)
        image, transcriptome = (
            {s: np.concatenate([getattr(e, tower)[s][which] for e, which in chosen]) for s in self.module.aligned}
            for tower in ("image", "transcriptome")
        )
        slide = np.concatenate([np.full(len(which), e.slide.name) for e, which in chosen])
        return retrieval_table(image, transcriptome, slide)

    def evaluate_expression(
        self, sdata: Tissue | None = None, split: str = "test", protocol: str = "default"
    ) -> pd.DataFrame:
        """Expression of tiles predicted from their image embedding by a ridge probe (Task 1, paper section 6.1).

        The probe is fitted on the training tiles, genes are chosen there, and a gene-mean predictor and the frozen
        encoder's own features stand beside the aligned embedding.

        Parameters
        ----------
        sdata
            Another object to test on; ``None`` for the one trained on.
        split
            Tiles to test on.
        protocol
            ``"default"``, or ``"hest"`` for HEST-1k's head.

        Returns
        -------
        One row a gene and slide: ``pcc``, ``mse`` for the aligned embedding, ``pcc_frozen``, ``mse_frozen`` for the frozen
        encoder, ``mse_gene_mean`` for the train mean.

        Examples
        --------
        >>> scores = model.evaluate_expression()
        >>> scores.index[:3].tolist(), len(scores)
        (['EPCAM', 'KRT19', 'KRT7'], 50)
        >>> sorted(name for name in scores if name.startswith("mse"))
        ['mse', 'mse_frozen', 'mse_gene_mean']
        """
        from sigmma_sc.infer.evaluate import chosen_tiles, expression_table

        require_choice(protocol, ("default", "hest"), "protocol")
        return expression_table(self, chosen_tiles(self, None, "train"), chosen_tiles(self, sdata, split), protocol)

    def predict_expression(
        self,
        sdata: Tissue | None = None,
        method: Literal["retrieval", "ridge"] = "retrieval",
        scale: str = "all",
        n_neighbors: int = 50,
    ) -> AnnData:
        """Expression of every tile from H&E alone; page *From H&E alone*.

        The numbers are log1p of a tile's counts, pooled over its cells and scaled to the median total of the training tiles,
        natural logarithm: the scale of :meth:`evaluate_expression`.

        Parameters
        ----------
        sdata
            Object to predict, with or without a table (``table_key=None``), whose cells are not looked at; ``None`` for the
            one of the model.
        method
            ``"retrieval"``: mean of the training tiles whose *transcriptome* embedding is nearest to the tile's image embedding,
            weighted by softmax(cosine similarity / temperature), after BLEEP (Xie et al. 2023). ``"ridge"``: the probe of
            :meth:`evaluate_expression`, fitted to every gene on the training tiles' image embeddings; it may go below 0.
        scale
            Embedding to use: one scale, or ``"all"``, for retrieval the mean of the scales' cosine similarities.
        n_neighbors
            Training tiles that retrieval averages; all of them if there are fewer.

        Returns
        -------
        AnnData of tiles × the genes trained on, float32; ``obs`` and ``obsm["spatial"]`` as in :meth:`get_tile_representation`.
        Tiles with ``obs["split"] == "train"`` were predicted from themselves among others, and tiles with little
        ``obs["tissue"]`` show glass. ``var["reliability"]``: Pearson correlation of predicted and measured expression across
        the validation tiles of a slide, mean over slides; ``var["reliability_n_tiles"]``: their number. Both speak of tissue
        like the training slides', not of other stains or organs.

        Raises
        ------
        SetupError
            The model carries no expression: it was trained without raw counts.

        Warns
        -----
        ExpressionWarning
            The reliability of some genes is not known (NaN): no validation tiles, or constant on them.

        Examples
        --------
        >>> predicted = model.predict_expression()
        >>> predicted.shape  # tiles and genes
        (121, 120)
        >>> bool(predicted.var.loc["EPCAM", "reliability"] > 0.5)
        True
        """
        from sigmma_sc.infer.predict import predict_expression

        require_choice(method, ("retrieval", "ridge"), "method")
        require_choice(scale, (*self._trained().aligned, "all"), "scale")
        require_positive(n_neighbors, "n_neighbors")
        return predict_expression(self, sdata, method, scale, int(n_neighbors))

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Save to a folder: ``model.json`` and ``weights.safetensors``, no pickle; written beside and moved into place.

        Of several processes the first one writes. A folder that holds more than a model is never replaced.

        A frozen encoder's weights are not stored, only how to load it and what to know it again by. What
        :meth:`predict_expression` needs of the training and validation tiles is: 2 bytes a gene and ``24 n_latent`` bytes for
        embeddings of three scales, so 8 MB for 2,000 tiles of 377 genes, 200 MB for 5,000 tiles of 18,000. A model without raw
        counts is saved without, with a warning.

        Examples
        --------
        >>> import os
        >>> model.save("saved", overwrite=True)
        >>> sorted(os.listdir("saved"))
        ['model.json', 'weights.safetensors']
        """
        from sigmma_sc.store.model import save

        self._trained()
        save(self, path, overwrite)

    @classmethod
    def load(
        cls,
        path: str | Path,
        sdata: Tissue,
        image_encoder: ImageEncoder | None = None,
        cache_dir: str | Path | None = None,
    ) -> SIGMMA:
        """Load a saved model.

        Parameters
        ----------
        path
            Folder written by :meth:`save`.
        sdata
            Object to work on; set up like the one trained on unless it was set up already. One of H&E alone, without a table,
            has to be: ``setup_spatialdata(sdata, table_key=None, microns_per_pixel=…)``.
        image_encoder
            Needed when the model was trained with an encoder of your own; its weights must be the same.
        cache_dir
            As for :class:`SIGMMA`.

        Raises
        ------
        SetupError
            Object and model do not fit, in setup, genes or cell features; the message names what differs.
        EncoderError
            The image encoder has other weights.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> again = SIGMMA.load("model", sdata)
        >>> np.allclose(again.get_latent_representation(), model.get_latent_representation())
        True
        """
        from sigmma_sc.store.model import load

        return load(cls, path, sdata, image_encoder, cache_dir)

    def __repr__(self) -> str:
        slides = ", ".join(f"{s.name} ({len(s.rows):,} cells)" for s in self._slides)
        size, named = self.setup.tile_size, zip(self.setup.scales, self.setup.grids, strict=True)
        aligned = self.module.aligned if self.is_trained_ else self.setup.scales
        scales = ", ".join(f"{n} {size / b:g} µm" for n, b in named if n in aligned)
        state = f"trained, {self.epochs_} epoch{'s' * (self.epochs_ != 1)}" if self.is_trained_ else "not trained"
        cells = f"edges: {self.config.edges}" if self.config.cells == "graph" else "cells: pooled genes"
        return (
            f"{type(self).__name__} ({state})\n  slides: {slides}\n  scales: {scales}\n  image encoder: "
            f"{self.image_encoder.name} ({self.config.regime}), {cells}, n_latent: {self.config.n_latent}"
        )

    def _towers(self, n_nodes: int) -> TwoTowers:
        """Fresh towers for node features, or gene vectors, of this width."""
        from sigmma_sc.store.model import build_towers

        return build_towers(self, n_nodes)

    def _trained(self) -> Any:
        if not self.is_trained_:
            raise NotTrainedError(
                "The model has not been trained. Call model.train() first, or SIGMMA.load(path, sdata)."
            )
        return self.module

    def _resolve(self, sdata: Tissue | None, cells: bool) -> Tissue:
        """The object to work on; one that was never set up takes the model's setup, but for its pixel size."""
        from sigmma_sc.store.compatible import adopt, require_match

        if sdata is None:
            return self.sdata
        adopt(sdata, replace(self.setup, microns_per_pixel=None))
        genes = None if self.data.nodes is None else self.data.nodes.genes
        require_match(self.setup, genes, self.module.n_nodes - self.config.cell_covariates, sdata, cells)
        return sdata

    def _embed(
        self, sdata: Tissue | None, images: bool = True, cells: bool = True, stride: float | None = None
    ) -> list[SlideEmbedding]:
        from sigmma_sc.infer.embed import Embedder

        module = self._trained()
        if stride is not None:
            require_divides(stride, self.setup.tile_size)
        return Embedder(self.data, module).slides(self._resolve(sdata, cells), images, cells, stride)
