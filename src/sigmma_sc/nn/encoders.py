"""Image encoders: a registry, timm, or any module of the user's (paper, section 5.1)."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigmma_sc._checks import EncoderError, require_positive

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

logger = logging.getLogger("sigmma_sc")
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_WORDS = ("classifier", "head", "fc")


class ImageEncoder(nn.Module):
    """An image encoder with everything needed to feed it.

    Parameters
    ----------
    module
        ``nn.Module`` or callable that maps ``(B, 3, H, W)`` float to ``(B, D)``.
    name
        Name to report.
    input_size
        Side in px that crops are resampled to.
    mean, std
        Normalisation of RGB in [0, 1].
    spec
        JSON-safe description from which :meth:`from_spec` rebuilds the encoder; ``None`` for a module of your own, which
        has to be passed again when a saved model is loaded.

    Raises
    ------
    EncoderError
        The output is not a finite ``(B, D)``.
    """

    def __init__(
        self,
        module: nn.Module | Callable[[Tensor], Tensor],
        name: str,
        input_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        require_positive(input_size, "input_size")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise EncoderError(f"mean={mean!r} and std={std!r} must be three numbers each, std positive.")
        self.module = module
        self.name, self.input_size, self.spec = name, int(input_size), spec
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        out = self.encode(torch.full((2, 3, self.input_size, self.input_size), 200, dtype=torch.uint8))
        if out.ndim != 2 or len(out) != 2 or not torch.isfinite(out).all():
            raise EncoderError(
                f"Image encoder {name!r} maps (2, 3, {input_size}, {input_size}) to {tuple(out.shape)}; a finite (2, D) is needed. "
                "Pool its tokens or feature map first, e.g. with timm's num_classes=0."
            )
        self.dim = int(out.shape[1])

    @torch.no_grad()
    def encode(self, crops: Tensor) -> Tensor:
        """Encode RGB crops ``(B, 3, S, S)`` uint8 to ``(B, D)`` float32."""
        return self.module((crops.float() / 255 - self._mean) / self._std).float()

    def forward(self, crops: Tensor) -> Tensor:
        """Same as :meth:`encode`."""
        return self.encode(crops)

    def fingerprint(self) -> str:
        """Hash over name, input size, normalisation and all weights; a plain callable counts by its name alone."""
        digest = hashlib.sha256(repr((self.name, self.input_size, self.mean, self.std)).encode())
        if isinstance(self.module, nn.Module):
            for key, value in sorted(self.module.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_timm(
        cls,
        arch: str,
        weights: str | Path | None = None,
        input_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        pretrained: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> ImageEncoder:
        """Build a timm model.

        Parameters
        ----------
        arch
            timm's name of the architecture, also ``"hf-hub:…"``.
        weights
            Local checkpoint, ``.safetensors``, ``.pt``, ``.pth`` or ``.bin``. A classifier in it is dropped; everything
            else must fit exactly.
        input_size, mean, std
            ``None`` takes timm's.
        pretrained
            Fetch timm's own weights when no local file is given.
        name
            Name to report; ``arch`` by default.
        **kwargs
            Further arguments of ``timm.create_model``.
        """
        import timm

        try:
            module = timm.create_model(arch, pretrained=pretrained and weights is None, **{"num_classes": 0, **kwargs})
        except Exception as error:
            raise EncoderError(
                f"timm cannot create {arch!r}: {error}. Give a name of timm.list_models(), or a local file as weights=… when the "
                "hub cannot be reached or access is not granted."
            ) from error
        if weights is not None:
            load_weights(module, weights, arch)
        config = timm.data.resolve_model_data_config(module)
        spec = {
            "kind": "timm", "arch": arch, "weights": None if weights is None else str(Path(weights).resolve()),
            "input_size": input_size, "mean": mean, "std": std, "pretrained": pretrained, "name": name, **kwargs,
        }  # fmt: skip
        return cls(
            module,
            name or arch,
            input_size or config["input_size"][-1],
            mean or config["mean"],
            std or config["std"],
            spec=spec,
        )

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ImageEncoder:
        """Rebuild from :attr:`spec`."""
        options = {
            key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "kind"
        }
        if spec["kind"] == "registry":
            return get_encoder(options["name"], options["weights"])
        return cls.from_timm(**options)


def load_weights(module: nn.Module, weights: str | Path, arch: str) -> None:
    """Load a local checkpoint strictly, but for a classifier that the encoder does not have.

    Raises
    ------
    EncoderError
        The file does not exist, or does not fit the architecture.
    """
    path = Path(weights)
    if not path.is_file():
        raise EncoderError(f"weights={str(path)!r} is no file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for nest in ("state_dict", "model", "teacher"):
        state = state[nest] if isinstance(state.get(nest), dict) else state
    state = {key.removeprefix("module."): value for key, value in state.items()}
    expected = module.state_dict()
    state = {k: v for k, v in state.items() if k in expected or k.split(".")[0] not in HEAD_WORDS}
    missing, surplus = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    misfit = [k for k in state if k in expected and state[k].shape != expected[k].shape]
    if missing or surplus or misfit:
        told = [
            f"{len(keys)} {what}, e.g. {keys[0]!r}"
            for what, keys in (("keys missing", missing), ("keys unexpected", surplus), ("shapes different", misfit))
            if keys
        ]
        raise EncoderError(
            f"{path.name} does not fit {arch!r}: {'; '.join(told)}. Check the architecture and its arguments (e.g. img_size, "
            "init_values, pad_type)."
        )
    module.load_state_dict(state)


@dataclass(frozen=True)
class Entry:
    """A registered encoder; sizes, normalisation and arguments as the model's authors state them."""

    architecture: str
    dim: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    gated: bool
    page: str
    citation: str
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)


REGISTRY = {
    "stain-stats": Entry(
        "StainStatistics", 0, 112, (0, 0, 0), (1, 1, 1), "BSD-3-Clause", False, "embedded, no download",
        "Ruifrok & Johnston 2001 (colour deconvolution)",
    ),
    "resnet50": Entry(
        "resnet50.tv_in1k", 2048, 224, IMAGENET_MEAN, IMAGENET_STD, "BSD-3-Clause", False,
        "https://huggingface.co/timm/resnet50.tv_in1k", "He et al. 2016",
    ),
    "uni": Entry(
        "vit_large_patch16_224", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI", "Chen et al. 2024, Nature Medicine 30:850",
        {"init_values": 1e-5, "dynamic_img_size": True},
    ),
    "h-optimus-0": Entry(
        "vit_giant_patch14_reg4_dinov2", 1536, 224, (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517),
        "Apache-2.0", True, "https://huggingface.co/bioptimus/H-optimus-0", "Saillard et al. 2024",
        {"init_values": 1e-5, "dynamic_img_size": False, "img_size": 224},
    ),
}  # fmt: skip
_HUB = {"uni": "hf-hub:MahmoodLab/UNI", "h-optimus-0": "hf-hub:bioptimus/H-optimus-0"}
_told: set[str] = set()


def list_encoders() -> pd.DataFrame:
    """Registered encoders with architecture, dimension, input size, normalisation, licence, gating, page and citation."""
    import pandas as pd

    rows = {name: {k: v for k, v in asdict(entry).items() if k != "kwargs"} for name, entry in REGISTRY.items()}
    rows["stain-stats"]["dim"] = get_encoder("stain-stats").dim
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def get_encoder(encoder: str | ImageEncoder, weights: str | Path | None = None) -> ImageEncoder:
    """Find an encoder.

    Parameters
    ----------
    encoder
        A registered name, a name of a timm model, or an :class:`ImageEncoder`, which is returned as it is.
    weights
        Local checkpoint; without one, registered names other than the embedded one are fetched from their hub.

    Raises
    ------
    EncoderError
        Unknown name, no access to the weights, or an object that says nothing of its normalisation.
    """
    if isinstance(encoder, ImageEncoder):
        return encoder
    if not isinstance(encoder, str):
        raise EncoderError(
            f"image_encoder={type(encoder).__name__} says nothing of its input. Wrap it: "
            "sg.ImageEncoder(module, name=…, input_size=224, mean=(…), std=(…))."
        )
    if encoder not in REGISTRY:
        return ImageEncoder.from_timm(encoder, weights, pretrained=weights is None)
    entry, spec = (
        REGISTRY[encoder],
        {"kind": "registry", "name": encoder, "weights": None if weights is None else str(weights)},
    )
    if encoder == "stain-stats":
        from sigmma_sc.nn.stain import StainStatistics

        return ImageEncoder(StainStatistics(), encoder, entry.input_size, entry.mean, entry.std, spec=spec)
    if encoder not in _told:
        logger.warning("Image encoder %s: licence %s, %s", encoder, entry.licence, entry.page)
        _told.add(encoder)
    arch = entry.architecture if weights is not None else _HUB.get(encoder, entry.architecture)
    try:
        built = ImageEncoder.from_timm(
            arch,
            weights,
            entry.input_size,
            entry.mean,
            entry.std,
            pretrained=weights is None,
            name=encoder,
            **entry.kwargs,
        )
    except EncoderError as error:
        if weights is not None:
            raise
        free = ", ".join(name for name, other in REGISTRY.items() if not other.gated)
        gate = f"Ask for access at {entry.page} and log in to the hub" if entry.gated else f"See {entry.page}"
        raise EncoderError(
            f"The weights of {encoder!r} cannot be loaded: {error.__cause__ or error}. {gate}, or download them and pass "
            f"get_encoder({encoder!r}, weights=path). Encoders that need no token: {free}, any open timm model."
        ) from error
    built.spec = spec
    return built
