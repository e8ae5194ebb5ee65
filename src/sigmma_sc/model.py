"""SIGMMA, the face of the package."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sigmma_sc._checks import (
    require_choice,
    require_interval,
    require_list,
    require_name,
    require_path,
    require_registered,
    require_step,
    require_whole,
    require_withhold,
)
from sigmma_sc._notices import silenced
from sigmma_sc._progress import displayed
from sigmma_sc.config import Config
from sigmma_sc.errors import ExpressionWarning, MissingKeyError, NotTrainedError, SetupError, WriteError
from sigmma_sc.registration.check import warn_unregistered
from sigmma_sc.tissue.setup import Setup, checked_setup, common_setup, objects_of, slides_of, store_setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from anndata import AnnData
    from numpy.typing import NDArray
    from scvi.train import Trainer
    from xarray import Dataset

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.features.data import TissueData
    from sigmma_sc.infer.embed import Embedder, SlideEmbedding
    from sigmma_sc.infer.index import TileIndex
    from sigmma_sc.infer.reference import Reference
    from sigmma_sc.niches.prototypes import NichePrototypes
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.store.model import SavedModel
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Tissue
    from sigmma_sc.train.options import TrainOptions


MOST_OFFSETS = 1024
"""Most grids of tiles over which cells are averaged: beyond that, embeddings stay the same and time grows."""


class SIGMMA:
    """Multi-scale alignment of H&E and cell graphs (Jeong et al., arXiv 2511.15464).

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`setup_spatialdata`.
    image_encoder
        Name in :func:`sigmma_sc.list_encoders`, name of a timm model, or a :class:`sigmma_sc.ImageEncoder`. The default
        computes statistics of stain and texture and needs no download. The encoder is frozen unless ``regime`` is set.
    n_latent
        Width of the shared space and of the cell embeddings (our choice; the paper is silent).
    preset
        ``"paper"`` for the method as published, as far as it is known. The whole image encoder is trained, node features
        have no covariates, slides are not standardised one by one, and spatial and added edges share one mean. Options that
        are given override it.
    cache_dir
        Folder that keeps the encoder's patch features from one session to the next, as float16. Several models may share
        it, also at the same time. Features are found by image, encoder and crop (page *Method*).
    **options
        Any other field of :class:`sigmma_sc.Config`: ``edges``, ``n_neighs``, ``radius``, ``regime``, ``loss_weights``,
        ``temperature``, ``negatives``, ``seed`` …

    Attributes
    ----------
    sdata
        Object, or objects by name, that the model works on.
    setup
        How the object is read, as stored by :meth:`setup_spatialdata`.
    config
        Options of the method, a :class:`sigmma_sc.Config`.
    image_encoder
        The image encoder as it came; a trained model holds its own copy.

    Raises
    ------
    SetupError
        An option does not exist or is out of range.
    EncoderError
        The encoder cannot be loaded, or cannot be used as the options ask.

    See Also
    --------
    sigmma_sc.tl.niches : Cluster the cell embeddings.
    sigmma_sc.baselines.BLEEP : A published method behind the same interface.

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
        **options: Any,
    ):
        from sigmma_sc.encoders.encoder import get_encoder
        from sigmma_sc.encoders.tuning import require_tunable
        from sigmma_sc.features.data import TissueData
        from sigmma_sc.features.registry import require_joint_features
        from sigmma_sc.nn.objectives import OBJECTIVES
        from sigmma_sc.train.fit import Trained

        self.sdata = sdata
        self.setup = common_setup(sdata)
        self.config = Config.of({"n_latent": n_latent, **options}, self.setup.grids, preset)
        require_registered(self.config.objective, OBJECTIVES, "objective", "register_objective")
        self.image_encoder = get_encoder(image_encoder)
        if self.config.regime != "frozen":
            require_tunable(self.image_encoder, self.config)
        for size in self.config.crop_sizes or ():
            self.image_encoder.allow(size)
        self._slides = slides_of(sdata)
        require_joint_features(self.config, self._slides)
        self._state = Trained(TissueData(self.setup, self.image_encoder, self.config, cache_dir))
        self._reference: Reference | None = None
        self._niches: NichePrototypes | None = None

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
        """Check an object, and store in ``sdata.attrs["sigmma"]`` how to read it.

        Parameters
        ----------
        sdata
            Object, or objects by name. Several regions and images in one object are fine.
        image_key
            H&E image, or image by region of the table. The regions may be of several objects.
        table_key
            Name of the table of cells; ``None`` for a slide of H&E alone.
        coordinate_system
            Coordinate system that image and cells share, or coordinate system by region.
        layer
            Layer that holds the raw counts; ``None`` for ``X``.
        features_key
            Key of ``obsm`` that holds an embedding of the cells; ``None`` for PCA of log-normalised counts.
        sample_key
            Column of ``obs`` that names the donor or section; ``None`` makes each region a sample.
        microns_per_pixel
            µm per H&E pixel at full resolution, or by region; ``None`` takes it from the transforms, which is logged.
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
            The cells are probably not registered to the image.
        ImageWarning
            A part of the image is black or transparent, or the image may not be an H&E.
        PixelSizeWarning
            The µm per pixel may be wrong.

        See Also
        --------
        sigmma_sc.pp.check_registration : The same check, as a table.

        Examples
        --------
        >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
        >>> SIGMMA.setup_spatialdata(tissue, tile_size=64, grids=(2, 1))
        >>> tissue.attrs["sigmma"]["tile_size"]
        64
        """
        setup = Setup.of(
            image_key=image_key, table_key=table_key, coordinate_system=coordinate_system, layer=layer,
            features_key=features_key, sample_key=sample_key, microns_per_pixel=microns_per_pixel,
            tile_size=tile_size, grids=grids,
        )  # fmt: skip
        checked = checked_setup(sdata, setup)
        for _, slides in checked.values():
            for slide in slides:
                warn_unregistered(slide)
        store_setup(sdata, {name: own for name, (own, _) in checked.items()})

    def train(  # noqa: PLR0913 - scvi-tools' and the paper's, as options inside
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
        """Train the towers; a further call trains on.

        A call that ends with an error or an interruption leaves the model as it was before. With ``checkpoint_dir`` the same
        call resumes where it ended. Slides that are new to the model, as after :meth:`load` with another object, are split by
        the call that first trains on them.

        Parameters
        ----------
        max_epochs
            Passes over the tissue. The learning rate falls to a hundredth over all of them.
        batch_size
            Tiles in a batch, over all devices.
        split
            Which tiles are held out. ``"auto"`` takes whole samples if there are three or more, and spatial blocks otherwise.
            Others are ``"sample"``, ``"blocks"``, ``"end"`` (one end of each section), ``"random"`` (leaks; warns),
            ``"none"`` (train on everything), or a name given to :func:`sigmma_sc.register_split`. A mapping
            ``{"test": [samples], "val": [samples]}`` names samples; ``"val"`` may be ``"blocks"`` of the samples that are left.
        accelerator, devices, precision
            Lightning's arguments of these names; ``num_nodes`` and ``strategy`` may be given too. Negatives are gathered
            from all devices. ``accelerator="auto"`` is an NVIDIA GPU if torch finds one, and the CPU elsewhere, on a Mac too.
            ``precision="auto"`` is bfloat16 autocast on a GPU that computes in it, float32 elsewhere. ``"32-true"`` computes
            the features of a frozen encoder in float32 as well (page *GPU guide*).
        stride
            Step in µm of the lattice on which training tiles may be cut. The default is the side of the finest grid's blocks:
            a quarter of a tile, with twice the patches of tiles side by side. Each epoch passes over every slide once, and
            cuts its tiles at an offset drawn anew.
        lr, weight_decay
            Learning rate and weight decay of AdamW. Biases, norms and temperatures are not decayed.
        encoder_lr
            Learning rate of the image encoder, where it is trained; ``None``: 1e-4 for adapters, 2e-5 otherwise (our choices).
        augment
            Turn, mirror and restain tiles at random; ``None``: where the image encoder is trained.
        chunk_size
            Crops that pass an encoder in training at once. More are faster and need more memory; the result is the same.
            If they do not fit, they are halved with a warning. ``None``: as many as fit into the free memory of a GPU, at most
            256; 4 on a CPU.
        early_stopping, early_stopping_patience
            Stop when the validation loss has not improved for this many epochs, and keep the weights of its lowest. Without
            early stopping, or without validation tiles, all epochs are run and the last weights are kept. scvi-tools' other
            ``early_stopping_*`` arguments may be given too.
        checkpoint_dir
            Folder to which the state of training is written after every epoch, as ``last.safetensors``. If that file exists,
            training resumes from it. A run that was killed then ends with the same weights and history, to the last bit on
            one CPU with one number of threads. A finished run only returns.
        ckpt_path
            Checkpoint to resume from, where it is not the one in ``checkpoint_dir``: a file, or a folder that holds one.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`. With ``enable_progress_bar=False`` no progress is shown.

        Raises
        ------
        SetupError
            A value is out of range, or the checkpoint is of another run; the message names what differs.

        See Also
        --------
        sigmma_sc.pl.training : Draw the losses.

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
        from sigmma_sc.train.options import TrainOptions

        setup = self.setup
        options = TrainOptions(
            max_epochs=max_epochs, batch_size=batch_size, split=split, accelerator=accelerator, devices=devices,
            precision=precision, stride=setup.tile_size / setup.grids[0] if stride is None else stride, lr=lr, weight_decay=weight_decay, encoder_lr=encoder_lr,
            augment=self.config.regime != "frozen" if augment is None else augment,
            chunk_size=chunk_size, early_stopping=early_stopping, early_stopping_patience=early_stopping_patience,
            checkpoint_dir=checkpoint_dir, ckpt_path=ckpt_path, trainer=trainer_kwargs,
        )  # fmt: skip
        options.check(self.config, setup)
        with silenced(), displayed(options.shows_progress):
            self._fit(options)

    def _fit(self, options: TrainOptions) -> None:
        from sigmma_sc.store.compatible import require_same
        from sigmma_sc.train.fit import fit

        slides = slides_of(self.sdata, self.setup)
        require_same(slides, self._slides, self.setup)
        self._state = fit(self._state, slides, self._towers, options)
        self._slides = slides
        self._reference = self._niches = None  # their embeddings are those of the weights before

    @property
    def data(self) -> TissueData:
        """Tissue of the model: features, and roles of tiles.

        >>> model.data.roles.split
        'blocks'
        """
        return self._state.data

    @property
    def module(self) -> TwoTowers | None:
        """The towers; ``None`` before training.

        >>> model.module.aligned
        ('micro', 'meso', 'macro')
        """
        return self._state.towers

    @property
    def trainer(self) -> Trainer | None:
        """Trainer of the last call of :meth:`train`.

        >>> model.trainer is None or model.trainer.current_epoch > 0
        True
        """
        return self._state.trainer

    @property
    def is_trained(self) -> bool:
        """Whether there are trained towers.

        >>> model.is_trained
        True
        """
        return self._state.towers is not None

    @property
    def epochs_trained(self) -> int:
        """Epochs of all calls of :meth:`train`.

        >>> model.epochs_trained
        120
        """
        return self._state.epochs

    @property
    def embedder(self) -> Embedder:
        """What embeds slides with the trained towers.

        >>> slides = model.resolve()
        >>> [embedding.slide.name for embedding in model.embedder.slides(slides, images=False)]
        ['cell_circles']
        """
        from sigmma_sc.infer.embed import Embedder

        return Embedder(self.data, self._trained())

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Data frames of losses by epoch: ``train_loss_epoch``, ``validation_loss``, those of each scale, and ln(batch).

        >>> loss = model.history["train_loss_epoch"]["train_loss_epoch"]
        >>> len(loss), bool(loss.iloc[-1] < loss.iloc[0])
        (120, True)
        """
        return self._state.history

    @property
    def niches(self) -> NichePrototypes | None:
        """Niches of the model's embeddings, saved with it; ``None`` before they are set, and after :meth:`train`.

        Setting anything but :class:`sigmma_sc.NichePrototypes` of the model's scales and width raises
        :class:`~sigmma_sc.errors.SetupError`.

        >>> x = {"meso": adata.obsm["X_sigmma_meso"]}
        >>> model.niches = sg.NichePrototypes.fit(x, {"meso": adata.obs["niche"]})
        >>> model.niches
        NichePrototypes(meso: 6 niches, width 64)
        >>> model.niches = None
        """
        return self._niches

    @niches.setter
    def niches(self, prototypes: NichePrototypes | None) -> None:
        from sigmma_sc.niches.prototypes import require_prototypes

        if prototypes is not None:
            require_prototypes(prototypes, self._trained().embedded, self.config.n_latent)
        self._niches = prototypes

    @property
    def device(self) -> torch.device:
        """Device of the towers.

        >>> model.to_device("cpu")
        >>> model.device
        device(type='cpu')
        """
        return next(self._trained().parameters()).device

    def to_device(self, device: str | torch.device) -> None:
        """Move the towers and the image encoder.

        Parameters
        ----------
        device
            Device, as torch names it.

        Raises
        ------
        NotTrainedError
            There are no towers yet.

        Examples
        --------
        >>> model.to_device("cpu")
        >>> model.device.type
        'cpu'
        """
        self._trained().to(device)
        self.image_encoder.to(device)

    def get_latent_representation(
        self, sdata: Tissue | None = None, scale: str = "micro", n_offsets: int = 16
    ) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """Cell embeddings of one scale.

        Parameters
        ----------
        sdata
            Another object with the same setup; ``None`` for the one trained on.
        scale
            ``"micro"``, ``"meso"`` or ``"macro"``; or ``"all"``, the unit vectors of the scales side by side, so that each
            scale has the same weight, as for tiles.
        n_offsets
            Number of grids of tiles over which each cell is averaged. The first covers the image, the others are moved by a
            quasi-random sequence of offsets. Embeddings of a single grid have seams at the borders of its tiles.

        Returns
        -------
        Embeddings ``(n_obs, d)`` float32, rows in the order of the table. Cells outside the image have NaN, with a
        :class:`~sigmma_sc.errors.CoverageWarning`. For a dict of objects, a dict of arrays.

        See Also
        --------
        write_embeddings : Write the embeddings of all scales into the object.

        Examples
        --------
        >>> model.get_latent_representation(scale="meso").shape
        (5000, 64)
        >>> model.get_latent_representation(scale="all").shape  # micro, meso and macro
        (5000, 192)
        """
        from sigmma_sc.infer.scales import at_scale
        from sigmma_sc.store.write import by_object, cell_matrices

        require_whole(n_offsets, "n_offsets", most=MOST_OFFSETS)
        embedded = self._trained().embedded
        if not embedded:
            raise SetupError("A model with cells='genes' embeds tiles, not cells. Use get_tile_representation().")
        require_choice(scale, (*embedded, "all"), "scale")
        slides = self.resolve(sdata)
        if any(slide.region is None for slide in slides):
            raise SetupError("The object was set up with table_key=None and has no cells to embed.")
        tissue = self.sdata if sdata is None else sdata
        out = {}
        embeddings = self.embedder.slides(slides, images=False, n_offsets=n_offsets)
        for name, group in zip(objects_of(tissue), by_object(embeddings), strict=True):
            cells = cell_matrices(group)
            out[name] = at_scale(cells, scale)
        return out if isinstance(tissue, dict) else next(iter(out.values()))

    def get_cell_image_representation(
        self, sdata: Tissue | None = None, scale: str = "micro", step: float | None = 0.5
    ) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """Image embedding of each segmented cell: a crop of the H&E around it through the image tower.

        The cells need no counts. A table without genes that annotates segmented nuclei is set up with any key of ``obsm``,
        such as ``features_key="spatial"``, which is not used here. The side of the crop is that
        of the scale's patches, 32, 64 or 128 µm by default. The tower was trained on the mean of all patches of a tile, of
        which a single crop stands in the place. Crops of cells that are close to each other are one crop, encoded once.

        Parameters
        ----------
        sdata
            Another object with the same tile size and grids; ``None`` for the one trained on.
        scale
            ``"micro"``, ``"meso"`` or ``"macro"``.
        step
            Crops are centred on the nearest point of a lattice with this step, in sides of a crop, so that a cell is in the
            middle half of its crop with 0.5 (our choice). ``None`` centres a crop on each cell.

        Returns
        -------
        Embeddings ``(n_obs, d)`` float32, rows in the order of the table. Cells outside the image have NaN, with a
        :class:`~sigmma_sc.errors.CoverageWarning`. For a dict of objects, a dict of arrays.

        Raises
        ------
        SetupError
            The object has no cells, or an argument is out of range.

        See Also
        --------
        sigmma_sc.tl.transfer_labels : Labels of cells with expression for cells on H&E alone.

        Examples
        --------
        >>> adata.obsm["X_image"] = model.get_cell_image_representation(scale="meso")
        >>> adata.obsm["X_image"].shape
        (5000, 64)
        """
        from sigmma_sc.infer.cell_images import cell_images
        from sigmma_sc.store.write import image_matrices

        require_choice(scale, self._trained().aligned, "scale")
        require_step(step)
        slides = self.resolve(sdata, cells=False)
        if any(slide.region is None for slide in slides):
            raise SetupError("The object was set up with table_key=None and has no cells to embed.")
        tissue = self.sdata if sdata is None else sdata
        embedder = self.embedder
        found = image_matrices(slides, [cell_images(embedder, slide, scale, step) for slide in slides])
        out = dict(zip(objects_of(tissue), found, strict=True))
        return out if isinstance(tissue, dict) else next(iter(out.values()))

    def get_tile_representation(
        self, sdata: Tissue | None = None, modality: Literal["image", "transcriptome"] = "image", scale: str = "macro"
    ) -> AnnData:
        """Tile embeddings in the shared space.

        Parameters
        ----------
        sdata
            Another object; with ``modality="image"`` it may hold no table (set up with ``table_key=None``).
        modality
            Tower to embed with.
        scale
            One scale, or ``"all"``: the scales' unit vectors side by side.

        Returns
        -------
        AnnData with one row for each tile of the grid that covers an image. ``obs`` has slide, corner in px (``x``, ``y``),
        number of cells, share of stained tissue and split; ``obsm["spatial"]`` has the centre in px. ``uns["sigmma"]`` names
        modality, scale and model.

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

        from sigmma_sc import _keys
        from sigmma_sc.infer.index import fingerprint
        from sigmma_sc.infer.scales import at_scale
        from sigmma_sc.infer.tiles import centres_of, tile_obs

        require_choice(modality, ("image", "transcriptome"), "modality")
        require_choice(scale, (*self._trained().aligned, "all"), "scale")
        cells = modality == "transcriptome"
        slides = self.resolve(sdata, cells)
        if cells and any(slide.region is None for slide in slides):
            raise SetupError(
                "modality='transcriptome' needs cells, and the object was set up with table_key=None. Use modality='image'."
            )
        embeddings = self.embedder.slides(slides, images=not cells, cells=cells)
        return AnnData(
            X=np.concatenate([at_scale(e.tower(modality), scale) for e in embeddings]),
            obs=pd.concat([tile_obs(self.data, e.slide) for e in embeddings]),
            obsm={"spatial": centres_of(embeddings)},
            uns={_keys.UNS: {"modality": modality, "scale": scale, "model": fingerprint(self._trained())}},
        )

    def build_index(
        self, path: str | Path, sdata: Tissue | None = None, labels: Sequence[str] = (), overwrite: bool = False
    ) -> TileIndex:
        """Write an index of tiles to search in, with :func:`sigmma_sc.tl.search`; page *Search*.

        All tiles that hold tissue are kept, with their image embeddings and, where there are cells, those of their
        transcriptomes. An index needs no slide and no model any more. It takes ``24 n_latent`` bytes a tile with three scales,
        and what :meth:`save` stores of the training and validation tiles. A crash leaves the old index or the new one.

        Parameters
        ----------
        path
            Folder to write.
        sdata
            Object, or objects by name, with or without tables; ``None`` for the model's own.
        labels
            Columns of ``obs`` of the cells that can be searched for, such as cell types or niches. Slides without a table have
            none.
        overwrite
            Replace an index.

        Returns
        -------
        The index.

        Raises
        ------
        ExistsError
            The folder exists, or holds something else.
        MissingKeyError
            A table has no such column.
        SetupError
            The model holds no expression: it was trained without raw counts.
        WriteError
            Nothing can be written there.

        Warns
        -----
        UnlikeWarning
            The model cannot tell which tiles are unlike its own.

        See Also
        --------
        sigmma_sc.TileIndex.read : Read an index.

        Examples
        --------
        >>> model.build_index("tissues", labels=["cell_type"], overwrite=True)
        TileIndex(79 tiles of 1 slide, 72 with cells; micro, meso, macro; labels: cell_type)
        """
        from sigmma_sc.infer.index import FOLDER, build
        from sigmma_sc.tissue.setup import obs_of_slide

        self._trained()
        require_path(path, "path")
        if labels not in ((), []):
            require_list(labels, "labels")
        slides = self.resolve(sdata, cells=False)
        for label in labels:
            for slide in slides:
                if slide.region is not None:
                    obs_of_slide(slide, label)
        folder = FOLDER.require_replaceable(path, overwrite)
        reference = self._reference_from(slides if sdata is None or sdata is self.sdata else None)
        index = build(self.embedder, slides, reference, labels, self.setup.tile_size)
        index.write(folder)
        return index

    def get_attention(
        self, tiles: Sequence[str], sdata: Tissue | None = None, when: Literal["before", "after"] = "after"
    ) -> Dataset:
        """Attention of the image encoder's class token to the patches of some tiles, head by head (paper, figure 3).

        Each tile is one crop, as at a grid of 1.

        Parameters
        ----------
        tiles
            Names of tiles: ``obs_names`` of :meth:`get_tile_representation` and of ``tables["sigmma_tiles"]``.
        sdata
            Another object, with or without a table; ``None`` for the one trained on.
        when
            Encoder before or after alignment. A frozen encoder is the same.

        Returns
        -------
        Dataset of ``attention`` (tile, head, row, column), the last block's softmax weights from the class token to each
        patch, and ``image`` (tile, y, x, channel), the crops that were encoded, uint8 RGB. Coordinates of each tile are
        ``slide``, ``image_key``, ``coordinate_system``, ``microns_per_pixel``, and its corner ``x0``, ``y0`` and ``side`` in px
        of the full-resolution image.

        Raises
        ------
        EncoderError
            The encoder is no vision transformer with a class token.
        MissingKeyError
            There is no such tile.

        See Also
        --------
        sigmma_sc.pl.attention : Draw the result.

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

        towers = self._trained()
        require_choice(when, ("before", "after"), "when")
        encoder = self.image_encoder
        if when == "after" and towers.encoder is not None:  # the model trains a copy: its own encoder is as it came
            encoder = towers.encoder.encoder
        # A whole tile is a crop of the coarsest grid, and reaches the encoder at its size.
        side = (self.config.crop_sizes or (encoder.input_size,))[-1]
        maps = tile_attention(encoder, self.resolve(sdata, cells=False), tiles, side, self.device)
        return maps.assign_attrs(when=when)

    def write_embeddings(self, sdata: Tissue | None = None, overwrite: bool = False, n_offsets: int = 16) -> None:
        """Write embeddings into the object.

        Cells get ``obsm["X_sigmma_<scale>"]`` and ``obs["sigmma_covered"]``. Tiles get ``tables["sigmma_tiles"]`` with both
        towers' embeddings in ``obsm``, and their squares in ``shapes["sigmma_tiles_<region>"]``. ``uns["sigmma"]``
        holds the parameters, the numbers of genes used and of control probes left out, the ``version`` of the package, the
        ``date`` in UTC, the ``split``, and the names of the embeddings written, by which a further call knows its own. If the object has slides that the
        model was not trained on, its tiles also get ``obs["sigmma_alike"]`` and ``obs["sigmma_least_alike"]`` of
        :meth:`predict_expression`, NaN for tiles of the slides trained on. A model that cannot tell leaves them out.

        Parameters
        ----------
        sdata
            Another object; ``None`` for the one trained on.
        overwrite
            Replace what another model wrote. What a model with the same setup and options wrote, as an earlier run of a
            notebook, is replaced in any case, and keys of your own are never.
        n_offsets
            Number of grids, see :meth:`get_latent_representation`; tile embeddings do not depend on it.

        Raises
        ------
        ExistsError
            A key exists and ``overwrite`` is not set, or a name of ours is that of something else; nothing is written then.

        See Also
        --------
        sigmma_sc.tl.niches : Cluster what is written.

        Examples
        --------
        >>> model.write_embeddings(overwrite=True)
        >>> sorted(key for key in adata.obsm if key.startswith("X_sigmma"))
        ['X_sigmma_macro', 'X_sigmma_meso', 'X_sigmma_micro']
        >>> sdata["sigmma_tiles"].n_obs
        121
        """
        from sigmma_sc.infer.tiles import tile_obs
        from sigmma_sc.store.write import (
            by_object,
            cell_matrices,
            microns_per_unit,
            provenance,
            require_free,
            write_cells,
            write_tiles,
        )

        require_whole(n_offsets, "n_offsets", most=MOST_OFFSETS)
        self._trained()
        slides = self.resolve(sdata)
        params = {}
        for slide in slides:
            params[id(slide.sdata)] = {
                **slide.setup.to_json(),
                **self.config.to_json(),
                "model": type(self).__name__,
                "image_encoder": self.image_encoder.name,
                "n_offsets": int(n_offsets),
            }
            if slide.adata is not None:
                params[id(slide.sdata)] |= self.data.node_features.described(slide)
            require_free(slide.sdata, slide.setup, params[id(slide.sdata)], overwrite)
        run = provenance(self.data.roles.split)
        for group in by_object(self.embedder.slides(slides, n_offsets=n_offsets)):
            slide = group[0].slide
            told = params[id(slide.sdata)] | run
            if slide.adata is not None and group[0].cells:
                write_cells(slide.table, cell_matrices(group), told, microns_per_unit(group))
            frames = [tile_obs(self.data, e.slide) for e in group]
            write_tiles(slide.sdata, group, self._with_likeness(frames, group), told)

    def _with_likeness(self, frames: list[pd.DataFrame], embeddings: Sequence[SlideEmbedding]) -> list[pd.DataFrame]:
        """``obs`` of tiles with their likeness to the training tissue, where there are new slides and it can be told."""
        from sigmma_sc.infer.alike import Likeness
        from sigmma_sc.infer.withhold import with_likeness

        new = [not self.data.roles.has_roles(e.slide) for e in embeddings]
        if not any(new):
            return frames
        try:
            likeness = Likeness.of(self._reference_from())
        except (SetupError, MissingKeyError):
            return frames  # a model without counts, or of too little tissue
        return [
            with_likeness(frame, likeness, self.embedder, e if here else None)
            for frame, e, here in zip(frames, embeddings, new, strict=True)
        ]

    def evaluate_retrieval(self, sdata: Tissue | None = None, split: str = "test") -> pd.DataFrame:
        """Cross-modal retrieval among the tiles of each slide (Task 2, paper section 6.2; METHOD: evaluation).

        Parameters
        ----------
        sdata
            Another object; all its tiles are candidates unless it was trained on.
        split
            Tiles to score: ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

        Returns
        -------
        Data frame with one row for each slide, direction and scale: recall at 5, 10 and 15 %, median rank, pool size and
        chance.

        See Also
        --------
        sigmma_sc.pl.retrieval : Show queries and what they retrieve.

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
        from sigmma_sc.infer.evaluate import slide_names
        from sigmma_sc.infer.scales import joined
        from sigmma_sc.metrics.retrieval import retrieval_table

        chosen = self.embed_split(sdata, split)
        return retrieval_table(joined(chosen, "image"), joined(chosen, "transcriptome"), slide_names(chosen))

    def embed_split(
        self, sdata: Tissue | None = None, split: str = "test"
    ) -> list[tuple[SlideEmbedding, NDArray[np.int64]]]:
        """Embed slides in both towers, for the tiles that an evaluation scores.

        Parameters
        ----------
        sdata
            Another object; all its tiles are chosen unless it was trained on.
        split
            ``"test"``, ``"val"``, ``"train"`` or ``"all"``.

        Returns
        -------
        Each embedded slide, with positions of its chosen tiles.

        Examples
        --------
        >>> [(embedding.slide.name, len(tiles)) for embedding, tiles in model.embed_split()]
        [('cell_circles', 17)]
        """
        from sigmma_sc.infer.tiles import scored_tiles

        self._trained()
        slides = self.resolve(sdata)
        tiles = scored_tiles(self.data, slides, split, other=sdata is not None)
        return list(zip(self.embedder.slides(slides), tiles, strict=True))

    def evaluate_expression(
        self, sdata: Tissue | None = None, split: str = "test", protocol: Literal["default", "hest"] = "default"
    ) -> pd.DataFrame:
        """Expression of tiles predicted from their image embedding by a ridge probe (Task 1, paper section 6.1).

        Probe and genes are chosen on the training tiles. A gene-mean predictor and the frozen encoder's features are scored
        in the same way. The probe standardises every feature, so that all scales have the same weight.

        Parameters
        ----------
        sdata
            Another object to test on; ``None`` for the one trained on.
        split
            Tiles to test on.
        protocol
            ``"default"``, or ``"hest"`` for HEST-1k's regression head.

        Returns
        -------
        Data frame with one row for each gene and slide: ``pcc`` and ``mse`` of the aligned embedding, ``pcc_frozen`` and
        ``mse_frozen`` of the frozen encoder, ``mse_gene_mean`` of the training mean.

        Examples
        --------
        >>> scores = model.evaluate_expression()
        >>> scores.index[:3].tolist(), len(scores)
        (['EPCAM', 'KRT19', 'KRT7'], 50)
        >>> sorted(name for name in scores if name.startswith("mse"))
        ['mse', 'mse_frozen', 'mse_gene_mean']
        """
        from sigmma_sc.infer.evaluate import expression_table
        from sigmma_sc.infer.tiles import scored_tiles

        require_choice(protocol, ("default", "hest"), "protocol")
        embedder = self.embedder
        trained_on = self.resolve()
        slides = trained_on if sdata is None or sdata is self.sdata else self.resolve(sdata)
        train_tiles = scored_tiles(self.data, trained_on, "train", other=False)
        test_tiles = scored_tiles(self.data, slides, split, other=sdata is not None)
        train = embedder.slides(trained_on, cells=False)
        test = train if slides is trained_on else embedder.slides(slides, cells=False)
        return expression_table(
            embedder, list(zip(train, train_tiles, strict=True)), list(zip(test, test_tiles, strict=True)), protocol
        )

    def predict_expression(
        self,
        sdata: Tissue | None = None,
        method: Literal["retrieval", "ridge", "auto"] = "retrieval",
        scale: str = "all",
        n_neighbors: int = 50,
        interval: float | None = None,
        withhold: float | None = 0.01,
    ) -> AnnData:
        """Expression of every tile from H&E alone; page *From H&E alone*.

        Values are log1p of a tile's counts (natural logarithm), pooled over its cells and scaled to the median total of the
        training tiles, as in :meth:`evaluate_expression`.

        Parameters
        ----------
        sdata
            Object to predict, with or without a table (``table_key=None``); its cells are not used. ``None`` for the model's
            own.
        method
            ``"retrieval"`` averages the training tiles whose *transcriptome* embeddings are nearest to the tile's image
            embedding, weighted by softmax(cosine similarity / temperature), after BLEEP (Xie et al. 2023). ``"ridge"`` is
            the probe of :meth:`evaluate_expression`, fitted to every gene; its values may be negative. ``"auto"`` takes for
            each gene the best of retrieval, ridge, ridge on the features of the image encoder, the average of these three, and
            the mean of the training tiles, as chosen on the validation tiles; it needs 10 of them.
        scale
            Embedding to use: one scale, or ``"all"``. For retrieval that is the mean of the scales' cosine similarities.
        n_neighbors
            Training tiles that retrieval averages; all of them if there are fewer.
        interval
            Share of new tiles whose expression is between ``layers["lower"]`` and ``layers["upper"]``, such as 0.9; ``None``
            for no such layers. It holds for each gene, if blocks of tiles of the new tissue are like those of the validation
            tiles (conformal prediction by block). The more blocks of validation tiles, the larger the shares that can be
            asked for: 0.9 needs 9.
        withhold
            Tiles with ``obs["sigmma_alike"]`` of at most this level are withheld: their values are NaN. ``None`` keeps all.

        Returns
        -------
        AnnData of tiles × genes trained on, float32, with ``obs`` and ``obsm["spatial"]`` of :meth:`get_tile_representation`.
        ``obs["sigmma_alike"]`` is near 1 for a tile like the tissue trained on, and 0 for one that is more unlike than any
        training or validation tile from another block, or from another slide where several were trained on.
        ``obs["sigmma_least_alike"]`` tells in what it is least alike: ``"stain"`` or ``"image features"``. The sentence in
        ``uns["sigmma"]["unlike"]`` sums up the tiles withheld; it is empty if none of them holds tissue.
        Tiles with ``obs["split"] == "train"`` were predicted from themselves among others. Tiles with little
        ``obs["tissue"]`` show glass. ``var["reliability"]`` is the Pearson correlation of predicted and measured expression
        across the validation tiles of a slide, mean over slides, and ``var["reliability_n_tiles"]`` their number. Both hold
        for tissue like that of the training slides, not for other stains or organs. ``var["method"]`` is the method of each
        gene: with ``"auto"`` it is ``"retrieval"``, ``"ridge"``, ``"encoder"``, ``"blend"`` or ``"mean"``. Its reliability is then of
        choices that were made without the validation tiles they are judged on.

        Raises
        ------
        SetupError
            The model holds no expression: it was trained without raw counts. Or the method needs more tiles. Or the interval
            needs more blocks of validation tiles, or a model that was saved by this version.

        Warns
        -----
        UnlikeWarning
            Some tiles are withheld, or the model cannot tell which tiles are unlike its own.
        ExpressionWarning
            The reliability of some genes is not known (NaN): there are no validation tiles, or they are constant there.

        See Also
        --------
        sigmma_sc.tl.map_to_image : The same for labels of cells.

        Examples
        --------
        >>> predicted = model.predict_expression()
        >>> predicted.shape  # tiles and genes
        (121, 120)
        >>> bool(predicted.var.loc["EPCAM", "reliability"] > 0.5)
        True
        >>> wide = model.predict_expression(interval=0.5)
        >>> bool((wide.layers["lower"] <= wide.layers["upper"]).mean() > 0.9)  # withheld tiles are NaN
        True
        """
        from sigmma_sc.infer.predict import Prediction, predict_expression, require_enough, temperature_of

        require_choice(method, ("retrieval", "ridge", "auto"), "method")
        towers = self._trained()
        require_choice(scale, (*towers.aligned, "all"), "scale")
        require_whole(n_neighbors, "n_neighbors")
        require_interval(interval)
        require_withhold(withhold)
        how = Prediction(method, scale, int(n_neighbors), temperature_of(towers, scale), interval, withhold)
        slides = self.resolve(sdata, cells=False)
        reference = self._reference_from(slides if sdata is None or sdata is self.sdata else None)
        require_enough(reference, how)
        embedder = self.embedder
        return predict_expression(reference, embedder, embedder.slides(slides, cells=False), how)

    def get_gene_reliability(
        self, method: Literal["retrieval", "ridge"] = "retrieval", scale: str = "all", n_neighbors: int = 50
    ) -> pd.DataFrame:
        """How well expression is predicted from H&E, gene by gene, on the validation tiles of the model.

        Parameters
        ----------
        method, scale, n_neighbors
            As in :meth:`predict_expression`.

        Returns
        -------
        Data frame by gene. ``reliability`` is the Pearson correlation of predicted and measured expression across the
        validation tiles of a slide, mean over slides; NaN where it is not known. ``reliability_n_tiles`` is the number of
        these tiles, and ``method`` the method.

        Raises
        ------
        SetupError
            The model holds no expression, or the method needs more tiles.

        Warns
        -----
        ExpressionWarning
            The reliability of some genes is not known.

        See Also
        --------
        predict_expression : The prediction itself, with the same columns in ``var``.

        Examples
        --------
        >>> table = model.get_gene_reliability()
        >>> bool(table.loc["EPCAM", "reliability"] > 0.5)
        True
        """
        from sigmma_sc.infer.predict import (
            Prediction,
            predict_held_out,
            reliability_of,
            require_enough,
            temperature_of,
        )

        require_choice(method, ("retrieval", "ridge"), "method")
        towers = self._trained()
        require_choice(scale, (*towers.aligned, "all"), "scale")
        require_whole(n_neighbors, "n_neighbors")
        how = Prediction(method, scale, int(n_neighbors), temperature_of(towers, scale))
        reference = self._reference_from()
        require_enough(reference, how)
        return reliability_of(reference, predict_held_out(reference, how)).assign(method=method)

    def _reference_from(self, slides: Sequence[Slide] | None = None) -> Reference:
        """Tiles to predict expression from: those that the model carries, else built from its own slides.

        The slides are resolved here, if at all, unless the caller has them already.
        """
        from sigmma_sc.infer.reference import build_reference

        if self._reference is None:
            self._reference = build_reference(self.embedder, self.resolve(cells=False) if slides is None else slides)
        return self._reference

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Save to a folder: ``model.json`` and ``weights.safetensors``, no pickle; written to one side and moved into place.

        Of several processes the first one writes. A folder that holds more than a model is never replaced.

        A frozen encoder's weights are not stored, only how to load and recognise it. The folder holds what
        :meth:`predict_expression` needs: for each training and validation tile 2 bytes a gene, ``24 n_latent`` bytes of
        embeddings of three scales, and 6 bytes a feature of the encoder. With 1,280 features that is 23 MB for 2,000 tiles of
        377 genes, and 234 MB for 5,000 tiles of 18,000 genes. A model without raw counts is saved without them, with a
        warning.

        Parameters
        ----------
        path
            Folder to write.
        overwrite
            Replace a saved model.

        Raises
        ------
        ExistsError
            The folder exists, or holds something else.
        WriteError
            Nothing can be written there, or the disk is full. The model is still in memory, and the folder as it was.

        Examples
        --------
        >>> import os
        >>> model.save("saved", overwrite=True)
        >>> sorted(os.listdir("saved"))
        ['model.json', 'weights.safetensors']
        """
        from sigmma_sc.store.model import FOLDER, is_writer, write_model

        self._trained()
        if not is_writer():
            return
        require_path(path, "path")
        folder = FOLDER.require_replaceable(path, overwrite)
        saved = self._saved()
        try:
            write_model(folder, saved)
        except WriteError as error:
            raise WriteError(
                f"{error} The trained model is still in memory: call save() with a folder on another disk."
            ) from error

    def _saved(self, slides: Sequence[Slide] | None = None) -> SavedModel:
        """The model as it is stored; :class:`ExpressionWarning` without counts to predict from."""
        from sigmma_sc.encoders.fingerprint import identity_of
        from sigmma_sc.store.model import SavedModel

        towers = self._trained()
        try:
            reference = self._reference_from(slides)
        except (SetupError, MissingKeyError) as error:
            # A model without counts to predict is saved all the same.
            reference = None
            warnings.warn(f"Model saved without expression to predict from: {error}", ExpressionWarning, stacklevel=3)
        encoder = self.image_encoder
        return SavedModel(
            kind=type(self).__name__,
            setup=self.setup,
            config=self.config.to_json(),
            extra=self._state.extra,
            encoder={**identity_of(encoder), "dim": encoder.dim, "spec": encoder.spec},
            n_node_features=towers.n_node_features,
            data=self.data.state(),
            towers=towers.trained_state(),
            history=self.history,
            epochs=self.epochs_trained,
            reference=reference,
            niches=self._niches,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        overwrite: bool = False,
        branch: str | None = None,
        token: str | None = None,
        tissue: str | None = None,
        licence: str | None = None,
        data_licence: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, in one commit: the files of :meth:`save`, and a model card.

        The card names tissue, panel, split, recall on the test tiles with 95 % intervals (bootstrap over spatial blocks), and
        the licences. As in :meth:`save`, a frozen encoder's weights are not stored, and the expression of training tiles is:
        a new repository is therefore private by default. Names of folders on this machine are not uploaded.

        Parameters
        ----------
        repo_id
            ``"owner/name"``. The repository is made if there is none.
        private
            Whether a new repository is private; one that exists stays as it is.
        overwrite
            Make a new commit in a repository that holds a model or a card already. Older commits are kept.
        branch
            Branch to write to; ``None`` for the main one.
        token
            Access token; ``None`` for the one of ``hf auth login``.
        tissue
            For the card: what the tissue is and where it was published, as Markdown.
        licence
            Licence of the model, by the hub's name of it, such as ``"cc-by-4.0"``.
        data_licence
            For the card: licence of the tissue's data.

        Returns
        -------
        Hash of the commit, for ``SIGMMA.load(repo_id, sdata, revision=hash)``.

        Raises
        ------
        SetupError
            ``repo_id`` is no name of a repository, or another argument is no text.
        ExistsError
            The repository holds a model or a card, and ``overwrite`` is not set.
        WriteError
            There is no login, no access or no network.

        See Also
        --------
        load : Load a model from the hub.

        Examples
        --------
        >>> commit = model.push_to_hub("lab/pancreas", data_licence="CC BY 4.0")  # doctest: +SKIP
        >>> again = SIGMMA.load("lab/pancreas", sdata, revision=commit)  # doctest: +SKIP
        """
        from sigmma_sc.infer.tiles import scored_tiles
        from sigmma_sc.store.card import CardText, model_card, recall_intervals
        from sigmma_sc.store.hub import push_model, require_pushable, without_folders

        self._trained()
        given = {"branch": branch, "token": token, "tissue": tissue, "licence": licence, "data_licence": data_licence}
        for what, value in given.items():
            if value is not None:
                require_name(value, what)
        require_pushable(repo_id, branch, token, overwrite)
        slides = self.resolve(cells=False)
        saved = without_folders(self._saved(slides))
        recall = None
        if all(slide.region is not None for slide in slides) and any(
            (self.data.roles.of(slide) == "test").any() for slide in slides
        ):
            tiles = scored_tiles(self.data, slides, "test", other=False)
            recall = recall_intervals(list(zip(self.embedder.slides(slides), tiles, strict=True)))
        card = model_card(repo_id, saved, self.data, slides, recall, CardText(tissue, licence, data_licence))
        return push_model(repo_id, saved, card, private=private, branch=branch, token=token)

    @classmethod
    def load(
        cls,
        path: str | Path,
        sdata: Tissue,
        image_encoder: ImageEncoder | None = None,
        cache_dir: str | Path | None = None,
        revision: str | None = None,
    ) -> SIGMMA:
        """Load a saved model.

        Parameters
        ----------
        path
            Folder written by :meth:`save`; or ``"owner/name"``, where there is no folder ``owner``, for a model on the Hugging
            Face hub (:meth:`push_to_hub`). A commit is downloaded into the hub's cache once, and later loaded without a network.
        sdata
            Object to work on. One that was never set up is set up like the one trained on. One of H&E alone has to be set up
            first: ``setup_spatialdata(sdata, table_key=None, microns_per_pixel=…)``.
        image_encoder
            The same encoder with the same weights, where the model was trained with one of your own.
        cache_dir
            Folder of patch features, see :class:`SIGMMA`.
        revision
            Commit, tag or branch on the hub. A commit gives the same model always; ``None`` is the newest.

        Returns
        -------
        The model, ready to embed, score and train on.

        Raises
        ------
        SetupError
            Object and model do not fit, in setup, genes or cell features; the message names what differs. Or the folder holds
            a model of another class.
        EncoderError
            The image encoder has other weights, or cannot be loaded.
        MissingKeyError
            There is no such folder, and no such model on the hub.

        Examples
        --------
        >>> model.save("model", overwrite=True)
        >>> again = SIGMMA.load("model", sdata)
        >>> np.allclose(again.get_latent_representation(), model.get_latent_representation())
        True
        """
        from sigmma_sc.store.compatible import check_compatible, inherit_setup
        from sigmma_sc.store.hub import model_folder
        from sigmma_sc.store.model import read_model, saved_encoder

        saved = read_model(model_folder(path, revision), cls.__name__)
        with inherit_setup(sdata, saved.setup) as inheriting:
            encoder = saved_encoder(saved.encoder, image_encoder)
            model = cls(sdata, image_encoder=encoder, cache_dir=cache_dir, **saved.config, **saved.extra)
            data = model.data
            data.restore(saved.data, saved.setup)
            check_compatible(model._slides, saved.setup, data.node_features)
        towers = model._towers(saved.n_node_features, data)
        towers.load_trained_state(saved.towers)
        towers.eval()
        if towers.encoder is not None:
            data.use_encoder(towers.encoder.encoder)
        if model.setup.table_key is None:
            # What later objects are compared with, and what is saved again, is a setup with cells.
            model.setup = data.setup = saved.setup
        model._state = replace(model._state, towers=towers, history=saved.history, epochs=saved.epochs)
        model._reference = saved.reference
        model._niches = saved.niches
        for slide in model._slides:
            if any(slide.sdata is one for one in inheriting):
                warn_unregistered(slide)
        return model

    def __repr__(self) -> str:
        slides = ", ".join(f"{s.name} ({len(s.rows):,} cells)" for s in self._slides)
        size, named = self.setup.tile_size, zip(self.setup.scales, self.setup.grids, strict=True)
        aligned = self.setup.scales if self.module is None else self.module.aligned
        scales = ", ".join(f"{n} {size / b:g} µm" for n, b in named if n in aligned)
        epochs = self.epochs_trained
        state = f"trained, {epochs} epoch{'s' * (epochs != 1)}" if self.is_trained else "not trained"
        cells = f"edges: {self.config.edges}" if self.config.cells == "graph" else "cells: pooled genes"
        return (
            f"{type(self).__name__} ({state})\n  slides: {slides}\n  scales: {scales}\n  image encoder: "
            f"{self.image_encoder.name} ({self.config.regime}), {cells}, n_latent: {self.config.n_latent}"
        )

    def resolve(self, sdata: Tissue | None = None, cells: bool = True) -> list[Slide]:
        """Slides of an object, checked against the model; nothing is stored with the object.

        Parameters
        ----------
        sdata
            Another object, which has the model's setup if it was never set up, but for its pixel size; ``None`` for the one
            trained on.
        cells
            Whether cells are embedded, not images alone.

        Raises
        ------
        SetupError
            Object and model do not fit; the message names what differs.

        Examples
        --------
        >>> [slide.name for slide in model.resolve()]
        ['cell_circles']
        """
        from sigmma_sc.store.compatible import check_compatible, require_same, require_table

        if sdata is None:
            slides = slides_of(self.sdata, self.setup)
            require_same(slides, self._slides, self.setup)
            return slides
        require_table(sdata, self.setup)
        slides = slides_of(sdata, replace(self.setup, microns_per_pixel=None))
        check_compatible(slides, self.setup, self.data.node_features, cells)
        return slides

    def _towers(self, n_node_features: int, data: TissueData) -> TwoTowers:
        """Fresh towers for node features of this width."""
        from sigmma_sc.nn.towers import Towers

        setup = self.setup
        encoder = self._trainable_encoder()
        return Towers(self.image_encoder.dim, n_node_features, setup.grids, setup.scales, self.config, encoder)

    def _trainable_encoder(self) -> TrainableEncoder | None:
        """A copy of the image encoder to be trained; ``None`` where it is frozen."""
        from sigmma_sc.encoders.tuning import tuned
        from sigmma_sc.nn.trainable import TrainableEncoder

        if self.config.regime == "frozen":
            return None
        encoder, grids = self.image_encoder, self.setup.grids
        crop_sizes = self.config.crop_sizes or (encoder.input_size,) * len(grids)
        return TrainableEncoder(tuned(encoder, self.config), grids, crop_sizes)

    def _trained(self) -> TwoTowers:
        if self.module is None:
            raise NotTrainedError("The model has not been trained. Call model.train() or SIGMMA.load(path, sdata).")
        return self.module
