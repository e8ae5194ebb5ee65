"""Image encoders by name: the published ones, as their authors describe them, and those that users register."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigmma_sc._checks import require_whole
from sigmma_sc.errors import EncoderError, EncoderWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from torch import Tensor, nn

    Builder = Callable[[Path | None], nn.Module | Callable[[Tensor], Tensor]]

RGB = tuple[float, float, float]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BIOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
BIOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
LUNIT_MEAN = (0.70322989, 0.53606487, 0.66096631)
LUNIT_STD = (0.21716536, 0.26081574, 0.20723464)
HALF = (0.5, 0.5, 0.5)
CLASS = "class token"
CLASS_AND_PATCHES = "class token, mean of patch tokens"
PROJECTED = "class token, projected"

CLIP_VIT_B32 = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "patch_size": 32, "image_size": 224, "projection_dim": 512,
}  # fmt: skip

GROUP = "sigmma_sc.encoders"
"""Entry points of packages that register encoders: functions without arguments."""


@dataclass(frozen=True)
class Entry:
    """What is known of an encoder before it is built."""

    architecture: str  # the network's name in its library, or the name of the function that builds it
    source: str  # library of the network
    dim: int | None  # length of a feature vector; None if it is found when the encoder is built
    input_size: int  # side of a crop in px
    # Normalisation of RGB in [0, 1].
    mean: RGB
    std: RGB
    pooling: str  # how the network's output becomes one vector for each crop
    # Terms of the weights, the address where they are published, and the publication.
    licence: str
    gated: bool  # whether the page gives access on request only
    page: str
    citation: str
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)  # further arguments of the network
    # Function that builds the network from a checkpoint; None if its library does.
    build: Builder | None = field(default=None, repr=False)
    # Checkpoint to load by default; None stands for the one on the page.
    weights: Path | None = field(default=None, repr=False)
    by_user: bool = field(default=False, repr=False)  # whether a user registered the encoder


def _stain_statistics(weights: Path | None) -> nn.Module:
    from sigmma_sc.encoders.stain import StainStatistics

    if weights is not None:
        raise EncoderError(f"'stain-stats' has no weights to load, got weights={str(weights)!r}.")
    return StainStatistics()


REGISTRY: dict[str, Entry] = {
    "stain-stats": Entry(
        "StainStatistics", "sigmma-sc", 96, 112, (0, 0, 0), (1, 1, 1), "statistics of the crop", "BSD-3-Clause", False,
        "embedded, no download", "Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291", build=_stain_statistics,
    ),
    "resnet50": Entry(
        "resnet50.tv_in1k", "timm", 2048, 224, IMAGENET_MEAN, IMAGENET_STD, "mean of the feature map", "BSD-3-Clause", False,
        "https://huggingface.co/timm/resnet50.tv_in1k", "He et al. 2016, CVPR",
    ),
    "kaiko-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, HALF, HALF, CLASS, "Kaiko non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "kaiko.ai et al. 2024, arXiv:2404.15217", {"dynamic_img_size": True},
    ),
    "lunit-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, LUNIT_MEAN, LUNIT_STD, CLASS, "Lunit non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.lunit_dino", "Kang et al. 2023, CVPR, arXiv:2212.04690",
    ),
    "uni": Entry(
        "vit_large_patch16_224", "timm", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Entry(
        "vit_giant_patch14_224", "timm", 1536, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI2-h", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "silu",
         "reg_tokens": 8, "dynamic_img_size": True},
    ),
    "h-optimus-0": Entry(
        "vit_giant_patch14_reg4_dinov2", "timm", 1536, 224, BIOPTIMUS_MEAN, BIOPTIMUS_STD, CLASS, "Apache-2.0", True,
        "https://huggingface.co/bioptimus/H-optimus-0", "Saillard et al. 2024, github.com/bioptimus/releases",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
    # 4 x 768 hidden features, two thirds of them behind each half of the gate.
    "h0-mini": Entry(
        "vit_base_patch14_reg4_dinov2", "timm", 1536, 224, BIOPTIMUS_MEAN, BIOPTIMUS_STD, CLASS_AND_PATCHES,
        "CC-BY-NC-ND-4.0", True, "https://huggingface.co/bioptimus/H0-mini",
        "Filiot et al. 2025, MICCAI, arXiv:2501.16239",
        {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "mlp_layer": "SwiGLUPacked",
         "act_layer": "silu", "global_pool": ""},
    ),
    "virchow2": Entry(
        "vit_huge_patch14_224", "timm", 2560, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS_AND_PATCHES,
        "CC-BY-NC-ND-4.0", True, "https://huggingface.co/paige-ai/Virchow2",
        "Zimmermann et al. 2024, arXiv:2408.00738",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "mlp_layer": "SwiGLUPacked",
         "act_layer": "silu", "global_pool": "", "dynamic_img_size": True},
    ),
    "phikon-v2": Entry(
        "Dinov2Model", "transformers", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "Owkin non-commercial", False,
        "https://huggingface.co/owkin/phikon-v2", "Filiot et al. 2024, arXiv:2409.09173",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "image_size": 224},
    ),
    "conch": Entry(
        "conch_ViT-B-16", "timm + open_clip", 512, 448, CLIP_MEAN, CLIP_STD, "attention", "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/CONCH", "Lu et al. 2024, Nat Med 30:863",
    ),
    "clip": Entry(
        "CLIPVisionModelWithProjection", "transformers", 512, 224, CLIP_MEAN, CLIP_STD, PROJECTED, "MIT", False,
        "https://huggingface.co/openai/clip-vit-base-patch32", "Radford et al. 2021, ICML, arXiv:2103.00020",
        CLIP_VIT_B32,
    ),
    "plip": Entry(
        "CLIPVisionModelWithProjection", "transformers", 512, 224, CLIP_MEAN, CLIP_STD, PROJECTED,
        "none stated, non-commercial intended", False, "https://huggingface.co/vinid/plip",
        "Huang et al. 2023, Nat Med 29:2307",
        CLIP_VIT_B32,
    ),
    "omiclip": Entry(
        "coca_ViT-L-14", "open_clip", 768, 224, CLIP_MEAN, CLIP_STD, "attention, projected, unit length",
        "BSD-3-Clause", True, "https://huggingface.co/WangGuangyuLab/Loki", "Chen et al. 2025, Nat Methods 22:1568",
    ),
}  # fmt: skip


_registered: dict[str, Entry] = {}  # by users, in this process
_packages_loaded = False


def register_encoder(
    name: str,
    network: str | Builder,
    *,
    input_size: int,
    mean: RGB,
    std: RGB,
    dim: int | None = None,
    weights: str | Path | None = None,
    licence: str = "",
    page: str = "",
    citation: str = "",
    gated: bool = False,
    overwrite: bool = False,
    **kwargs: object,
) -> None:
    """Give an image encoder of your own a name, which works wherever an encoder is named.

    The name lasts as long as the process. On the command line, ``sigmma-sc --import MODULE`` first imports your module. To
    have the name everywhere, put the call into a function of a package and declare the function as an entry point of the
    group ``"sigmma_sc.encoders"``.

    Parameters
    ----------
    name
        Name of the encoder: letters, digits and any of ``. _ + -``. It goes before timm's network of the same name.
    network
        Name of a timm network, or a function that builds the network. The function takes the path of a checkpoint, or
        ``None``, and returns a module that maps ``(B, 3, S, S)`` normalised crops to ``(B, D)``.
    input_size
        Side S of the crops in px.
    mean, std
        Mean and standard deviation with which RGB in [0, 1] is normalised.
    dim
        Length D of a feature vector; by default, two blank crops are encoded to find it.
    weights
        Checkpoint to load when :func:`get_encoder` is given none. Without it, a timm network's weights come from
        ``page``, and a function gets ``None``.
    licence, page, citation
        Terms of the weights, address of their page, and publication, for :func:`list_encoders`.
    gated
        Whether the page on the hub gives access to the weights on request only.
    overwrite
        Replace an encoder of the same name. A package cannot do so, only a session.
    **kwargs
        Further arguments of ``timm.create_model`` for a timm network, as in :meth:`ImageEncoder.from_timm`.

    Raises
    ------
    EncoderError
        The name is taken or malformed, or an argument does not fit.
    SetupError
        ``input_size`` or ``dim`` is no positive whole number.

    See Also
    --------
    ImageEncoder : Wrap a module for one session, without a name.
    get_encoder : Build an encoder by its name.

    Examples
    --------
    >>> from torch import nn
    >>> def mean_colour(weights):
    ...     return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> sg.register_encoder("mean-colour", mean_colour, input_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    >>> sg.get_encoder("mean-colour").dim
    3
    >>> half = (0.5, 0.5, 0.5)
    >>> sg.register_encoder("my-vit", "vit_small_patch16_224", weights="vit.pth", input_size=224, mean=half, std=half)
    >>> sg.list_encoders().loc["my-vit", "architecture"]
    'vit_small_patch16_224'
    """
    load_packages()
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
        raise EncoderError(f"name={name!r} must consist of letters, digits and any of '.', '_', '+', '-'.")
    if not overwrite and (name in REGISTRY or name in _registered):
        raise EncoderError(f"An image encoder {name!r} is registered already. Choose another or pass overwrite=True.")
    require_whole(input_size, "input_size")
    if dim is not None:
        require_whole(dim, "dim")
    mean, std = require_normalisation(mean, std)
    for what, text in (("licence", licence), ("page", page), ("citation", citation)):
        if not isinstance(text, str):
            raise EncoderError(f"{what}={text!r} must be a text.")
    if not isinstance(gated, bool):
        raise EncoderError(f"gated={gated!r} must be True or False.")
    if weights is not None and not isinstance(weights, (str, Path)):
        raise EncoderError(f"weights={weights!r} must be the path of a checkpoint.")
    entry = Entry(
        architecture=str(network),
        source="timm",
        dim=dim,
        input_size=input_size,
        mean=mean,
        std=std,
        pooling="timm's",
        licence=licence,
        gated=gated,
        page=page,
        citation=citation,
        kwargs=kwargs,
        weights=None if weights is None else Path(weights).expanduser().resolve(),
        by_user=True,
    )
    if not isinstance(network, str):
        _require_builder(name, network, kwargs)
        entry = replace(entry, architecture=_name_of(network), source=network.__module__, pooling="own", build=network)
    _registered[name] = entry


def require_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[RGB, RGB]:
    """Mean and standard deviation as tuples of floats, or :class:`EncoderError` if they are not three numbers each."""
    try:
        checked = _rgb(mean), _rgb(std)
    except (TypeError, ValueError):
        checked = None
    if checked is None or not min(checked[1]) > 0:
        raise EncoderError(f"mean={mean!r} and std={std!r} must be three numbers each, std positive.")
    return checked


def _rgb(value: Sequence[float]) -> RGB:
    red, green, blue = value
    return float(red), float(green), float(blue)


def _require_builder(name: str, network: Builder, kwargs: dict[str, object]) -> None:
    """Check that ``network`` is a function of a checkpoint, and that nothing is given for timm."""
    if hasattr(network, "state_dict") and not isinstance(network, type):
        raise EncoderError(
            f"network is a {type(network).__name__}, built already. Pass a function that returns it: "
            f"sg.register_encoder({name!r}, lambda weights: network, …)."
        )
    try:
        signature(network).bind(None)
    except (TypeError, ValueError) as error:
        raise EncoderError(
            f"network={network!r} must be the name of a timm network, or a function of one argument, the path of a "
            f"checkpoint: {error}."
        ) from error
    if kwargs:
        raise EncoderError(
            f"{', '.join(kwargs)}: such arguments go with a timm network. Set them in {_name_of(network)}."
        )


def _name_of(function: Builder) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def load_packages() -> None:
    """Have installed packages register their encoders, once in a process; one that fails is left out with a warning."""
    global _packages_loaded
    if _packages_loaded:
        return
    _packages_loaded = True
    for point in entry_points(group=GROUP):
        _load_package(point)


def _load_package(point: EntryPoint) -> None:
    before = dict(_registered)
    try:
        point.load()()
        # Packages are loaded when a name is not found. A name must mean the same encoder before and after.
        taken = {**REGISTRY, **before}
        replaced = [name for name, entry in _registered.items() if name in taken and entry is not before.get(name)]
        if replaced:
            raise EncoderError(f"It replaces {', '.join(replaced)}; only a session may, so choose other names.")
    except Exception as error:  # noqa: BLE001 - of whatever kind, it is shown
        _registered.clear()
        _registered.update(before)
        warnings.warn(
            f"Mend or uninstall the package with the entry point {point.name} = {point.value!r}: its image encoders are left "
            f"out. {type(error).__name__}: {error}",
            EncoderWarning,
            stacklevel=2,
        )


def find_entry(name: str) -> Entry | None:
    """What is registered under a name; ``None`` if nothing is, by this package, a user or an installed package."""
    if name not in REGISTRY and name not in _registered:
        load_packages()
    return _registered.get(name, REGISTRY.get(name))


def all_entries() -> dict[str, Entry]:
    """Every registered encoder by name, those of this package first."""
    load_packages()
    return {**REGISTRY, **_registered}


def list_encoders() -> pd.DataFrame:
    """Registered encoders with architecture, library, dimension, input, pooling, licence, gating, page and citation.

    Encoders that you or an installed package registered come last. Their ``dim`` may be missing until they are built.

    See Also
    --------
    get_encoder : Build an encoder by its name.
    register_encoder : Add an encoder of your own.

    Examples
    --------
    >>> encoders = sg.list_encoders()
    >>> encoders.loc["uni", ["dim", "licence", "gated"]].to_dict()
    {'dim': 1024, 'licence': 'CC-BY-NC-ND-4.0', 'gated': True}
    >>> encoders.index[~encoders["gated"]].tolist()
    ['stain-stats', 'resnet50', 'kaiko-vits16', 'lunit-vits16', 'phikon-v2', 'clip', 'plip']
    """
    import pandas as pd

    rows = [{"name": name, **vars(entry)} for name, entry in all_entries().items()]
    table = pd.DataFrame(rows).set_index("name").astype({"dim": "Int64"})
    return table.drop(columns=["kwargs", "build", "weights", "by_user"])
