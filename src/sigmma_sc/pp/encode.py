"""Patch features by many processes; each computes a share of one cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_choice, require_divides, require_path
from sigmma_sc._files import require_writable
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import common_setup, objects_of, slides_of, stored_setup
from sigmma_sc.tissue.tiling import lattice_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from distributed import Client
    from numpy.typing import NDArray

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.features.data import TissueData
    from sigmma_sc.tissue.frame import Slide

    Stores = dict[str | None, tuple[str, dict[str, Any]]]
    from sigmma_sc.tissue.setup import Tissue


def encode_patches(
    sdata: Tissue,
    image_encoder: str | ImageEncoder,
    cache_dir: str | Path,
    *,
    stride: float | None = None,
    crop_sizes: Sequence[int] | None = None,
    precision: Literal["auto", "32-true"] = "auto",
    client: Client | None = None,
) -> None:
    """Compute the patch features that training and embedding need, and cache them for ``SIGMMA(…, cache_dir=…)``.

    Without a client, this process encodes all patches. Under ``torchrun`` or Slurm's ``srun``, each process encodes a share,
    on the GPU of its local rank or the one it sees, and returns when that is done. If a Dask client is given, its workers
    share the work, and the GPUs of a machine take turns. Shares are strips of the slides, so that a stored chunk is decoded
    by one process, or two at a border.

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    image_encoder
        Encoder, or its name as for :func:`sigmma_sc.get_encoder`.
    cache_dir
        Folder of features, which all processes can write to.
    stride
        Step of the lattice of training tiles, µm; by default as in :meth:`sigmma_sc.SIGMMA.train`.
    crop_sizes
        Side of the crops of each scale in px, see :class:`sigmma_sc.Config`.
    precision
        ``"32-true"`` computes in float32 on any device, for training with that precision. By default a GPU computes in
        bfloat16 or float16, whichever it is fast in.
    client
        Client of ``dask.distributed``. Each worker opens the objects from their stores and builds the encoder again.

    Raises
    ------
    WriteError
        Nothing can be written to ``cache_dir``.
    SetupError
        There is no setup. Or there is a client, and an object is in no store or the workers cannot build the encoder.

    Warns
    -----
    CacheWarning
        The disk has become full; features from then on are not kept.

    See Also
    --------
    sigmma_sc.SIGMMA : Reads the features from ``cache_dir``.

    Examples
    --------
    >>> encoder = sg.ImageEncoder(lambda x: x.mean((2, 3)), name="mean colour", input_size=16)
    >>> sg.pp.encode_patches(sdata, encoder, "features", stride=128)
    >>> ready = SIGMMA(sdata, image_encoder=encoder, cache_dir="features")  # its features are there
    """
    from sigmma_sc.encoders.encoder import get_encoder

    require_choice(precision, ("auto", "32-true"), "precision")
    require_path(cache_dir, "cache_dir")
    encoder = get_encoder(image_encoder)
    require_writable(Path(cache_dir) / "any")
    how = (str(cache_dir), stride, crop_sizes, precision)
    if client is None:
        _encode_share(sdata, encoder, *how, *_place())
        return
    if encoder.spec is None:
        raise SetupError(
            f"Image encoder {encoder.name!r} is a module that the workers cannot build. Use torchrun, or an encoder by name or "
            "ImageEncoder.from_timm(…)."
        )
    stores = _stores(sdata)
    world = len(client.scheduler_info(n_workers=-1)["workers"])
    share = (stores, encoder.spec, *how)
    client.gather([client.submit(_encode_stored, *share, n, world, pure=False, retries=1) for n in range(world)])


def _stores(sdata: Tissue) -> Stores:
    """Path of the store and setup of each object by name; the name of a single object is ``None``."""
    out: Stores = {}
    for name, one in objects_of(sdata).items():
        if one.path is None:
            raise SetupError("Workers open the object from its store. Write it first: sdata.write('tissue.zarr').")
        setup = stored_setup(one)
        if setup is None:
            raise SetupError("Call SIGMMA.setup_spatialdata(sdata) first.")
        out[name if isinstance(sdata, dict) else None] = (str(one.path), setup.to_json())
    return out


def _encode_stored(
    stores: Stores,
    spec: dict[str, Any],
    cache_dir: str,
    stride: float | None,
    crop_sizes: Sequence[int] | None,
    precision: str,
    rank: int,
    world: int,
) -> None:
    """Encode a share of stored objects, in a worker."""
    import spatialdata

    from sigmma_sc.encoders.encoder import ImageEncoder

    objects = {}
    for name, (path, setup) in stores.items():
        objects[name] = spatialdata.read_zarr(path)
        objects[name].attrs[_keys.SETUP] = setup
    encoder = ImageEncoder.from_spec(spec)
    _encode_share(objects.get(None, objects), encoder, cache_dir, stride, crop_sizes, precision, rank, world)


def _encode_share(
    sdata: Tissue,
    encoder: ImageEncoder,
    cache_dir: str | Path,
    stride: float | None,
    crop_sizes: Sequence[int] | None,
    precision: str,
    rank: int,
    world: int,
) -> None:
    from sigmma_sc.config import Config
    from sigmma_sc.features.data import TissueData

    setup = common_setup(sdata)
    config = Config.of({} if crop_sizes is None else {"crop_sizes": tuple(crop_sizes)}, setup.grids)
    for size in config.crop_sizes or ():
        encoder.allow(size)
    stride = setup.tile_size / setup.grids[0] if stride is None else stride
    require_divides(stride, setup.tile_size)
    data = TissueData(setup, encoder, config, cache_dir)
    data.single_precision = precision == "32-true"
    for slide in slides_of(sdata):
        crops, sizes = _needed(data, slide, stride)
        share = np.array_split(np.lexsort((crops[:, 0], crops[:, 1])), world)[rank]
        if len(share):
            data.features(slide, crops[share], _device(rank), sizes[share], data.single_precision)


def _needed(data: TissueData, slide: Slide, stride: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct crops of the tiles that cover a slide, and of those that training may draw."""
    tiles = [slide.tiles]
    if slide.region is not None:
        lattice = lattice_tiles(slide.xy, slide.width, slide.height, slide.side, stride / slide.microns_per_pixel)
        tiles.append(lattice.take(np.flatnonzero(data.usable(slide, lattice))))
    found = [data.crops(part)[:2] for part in tiles]
    crops = np.concatenate([crops for crops, _ in found])
    sizes = np.concatenate([sizes for _, sizes in found])
    first = np.unique(np.round(crops, 3), axis=0, return_index=True)[1]
    return crops[first], sizes[first]


def _place() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun or srun give them."""
    # In a batch script that srun has not started, the number of tasks is that of steps to come.
    names = ("RANK", "WORLD_SIZE") if "RANK" in os.environ else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if any(name not in os.environ for name in names):
        return 0, 1
    return int(os.environ[names[0]]), int(os.environ[names[1]])


def _device(rank: int) -> torch.device:
    """GPU of this process, counted on its machine among those that it sees; a job may show each process one alone."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", rank)))
    return torch.device("cuda", local % torch.cuda.device_count())
