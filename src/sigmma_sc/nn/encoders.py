"""Image encoders: a registry, timm, or any module of the user's behind one face (paper, section 5.1)."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigmma_sc._checks import EncoderError, require_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

logger = logging.getLogger("sigmma_sc")
Three = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
PERMISSIVE = {"Apache-2.0", "BSD-3-Clause", "MIT"}


class ImageEncoder(nn.Module):
    """An image encoder with everything needed to feed it.

    Parameters
    ----------
    module
        ``nn.Module`` or callable that maps ``(B, 3, S, S)`` float to ``(B, D)``.
    name
        Name to report.
    input_size
        Side S in px of the crops.
    mean, std
        Normalisation of RGB in [0, 1].
    dim
        D; ``None`` finds it by encoding two blank crops.
    spec
        JSON-safe description from which :meth:`from_spec` rebuilds the encoder; ``None`` for a module of your own, or
        random weights, which have to be passed again when a saved model is loaded.

    Raises
    ------
    EncoderError
        The output is not a finite ``(B, D)``, or an argument is out of range.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        module: nn.Module | Callable[[Tensor], Tensor],
        name: str,
        input_size: int = 224,
        mean: Three = IMAGENET_MEAN,
        std: Three = IMAGENET_STD,
        dim: int | None = None,
        spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        require_positive(input_size, "input_size")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise EncoderError(f"mean={mean!r} and std={std!r} must be three numbers each, std positive.")
        self.module, self.name, self.input_size, self.dim, self.spec = module, name, int(input_size), dim, spec
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        place = next(module.parameters(), self._mean).device if isinstance(module, nn.Module) else "cpu"
        self._mean, self._std = self._mean.to(place), self._std.to(place)
        if dim is None:
            out = self.encode(torch.zeros(2, 3, self.input_size, self.input_size, dtype=torch.uint8))
            if not torch.isfinite(out).all():
                raise EncoderError(
                    f"Image encoder {name!r} gives NaN or infinity for a black crop. Check mean and std."
                )
            self.dim = int(out.shape[1])

    def features(self, crops: Tensor) -> Tensor:
        """Encode ``(B, 3, S, S)`` uint8 RGB crops to ``(B, D)`` float32 in the module's own mode, with gradient.

        For training the encoder; :meth:`encode` is the frozen counterpart.
        """
        side = self.input_size
        if crops.dtype != torch.uint8 or crops.ndim != 4 or tuple(crops.shape[1:]) != (3, side, side):
            raise EncoderError(
                f"Image encoder {self.name!r} takes uint8 crops (B, 3, {side}, {side}), got {crops.dtype} "
                f"{tuple(crops.shape)}. Resample the crops to its input_size; it normalises them itself."
            )
        if not len(crops) and self.dim is not None:
            return self._mean.new_zeros(0, self.dim)
        out = self.module((crops.to(self._mean.device).to(self._mean.dtype) / 255 - self._mean) / self._std)
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(found, tuple) or len(found) != 2 or found != (len(crops), self.dim or found[1]):
            raise EncoderError(
                f"Image encoder {self.name!r} maps {tuple(crops.shape)} to {found}; ({len(crops)}, {self.dim or 'D'}) is "
                "needed. Pool its tokens or feature map first, e.g. with timm's num_classes=0."
            )
        return out.float()

    @torch.no_grad()
    def encode(self, crops: Tensor) -> Tensor:
        """Encode ``(B, 3, S, S)`` uint8 RGB crops to ``(B, D)`` float32, in eval mode and without gradient."""
        with _evaluating(self):
            return self.features(crops)

    def forward(self, crops: Tensor) -> Tensor:
        """Encode as :meth:`encode` does."""
        return self.encode(crops)

    def fingerprint(self) -> str:
        """SHA-256 over name, input size, normalisation and every parameter and buffer.

        A callable that is no ``nn.Module`` has no weights to read: its name has to tell its versions apart.
        """
        digest = hashlib.sha256(repr((self.name, self.input_size, self.mean, self.std)).encode())
        if isinstance(self.module, nn.Module):
            for key, value in sorted([*self.module.named_parameters(), *self.module.named_buffers()]):
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @classmethod
    def from_timm(
        cls,
        arch: str,
        weights: str | Path | None = None,
        input_size: int | None = None,
        mean: Three | None = None,
        std: Three | None = None,
        pretrained: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> ImageEncoder:
        """Build a timm model without its classifier.

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
            Further arguments of ``timm.create_model``; ``mlp_layer`` may be the name of a class in ``timm.layers``.

        Raises
        ------
        EncoderError
            timm does not know the name, the weights cannot be had, or they do not fit.
        """
        import timm

        module = _build(arch, weights, pretrained, name or arch, kwargs)
        config = timm.data.resolve_model_data_config(module)
        size = input_size or kwargs.get("img_size") or config["input_size"][-1]
        told = {"input_size": input_size, "mean": mean, "std": std, "pretrained": pretrained, "name": name}
        spec: dict[str, Any] | None = {"kind": "timm", "arch": arch, "weights": _absolute(weights), **told, **kwargs}
        if not (weights or pretrained) or not _is_json(spec):
            spec = None
        return cls(module, name or arch, size, mean or config["mean"], std or config["std"], spec=spec)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ImageEncoder:
        """Rebuild from ``spec``; a local checkpoint has to lie where it lay."""
        options: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in spec.items() if key != "kind"
        }
        return get_encoder(**options) if spec["kind"] == "registry" else cls.from_timm(**options)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part in eval mode, then give each its own mode back: some may be frozen and some not."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def read_weights(weights: str | Path) -> dict[str, Tensor]:
    """State dict in a local file, also one nested under ``state_dict`` or ``model``.

    Raises
    ------
    EncoderError
        The file does not exist, or holds something else.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise EncoderError(f"weights={str(weights)!r} is no file. Give the path of a downloaded checkpoint.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        while nest := next((k for k in ("state_dict", "model") if isinstance(state.get(k), dict)), None):
            state = state[nest]
        return dict(state)
    except Exception as error:
        raise EncoderError(
            f"weights={str(weights)!r} cannot be read: {error}. Needed are tensors by name: .safetensors, or a file of "
            "torch.save(model.state_dict(), path)."
        ) from error


def load_weights(module: nn.Module, state: dict[str, Tensor], arch: str) -> None:
    """Load a state dict strictly, but for a classifier that the encoder does not have.

    Raises
    ------
    EncoderError
        It does not fit the architecture; the message names the keys.
    """
    expected = module.state_dict()
    heads = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = [f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)]
    heads += [f"{head}.{part}" for head in ("classifier", "head", "fc") for part in ("weight", "bias")]
    state = {k if k in expected else k.removeprefix("module."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if k in expected or not k.startswith(tuple(heads))}
    shapes = {k: (tuple(v.shape), tuple(expected[k].shape)) for k, v in state.items() if k in expected}
    wrong = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": [
            f"{k} {found}, needed {needed}" for k, (found, needed) in shapes.items() if found != needed
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in wrong.items() if keys)
        raise EncoderError(
            f"The weights do not fit {arch!r} ({told}). Check the architecture and what from_timm passes on to "
            "timm.create_model, e.g. img_size, init_values, reg_tokens, pad_type."
        )
    module.load_state_dict(state)


def _build(arch: str, weights: str | Path | None, pretrained: bool, name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build a timm network with its weights; what fails for want of a file or of access fails before it is built."""
    import timm

    hub = arch.startswith(("hf-hub:", "hf_hub:"))
    if not hub and not timm.is_model(arch):
        near = difflib.get_close_matches(arch, sorted({*REGISTRY, *timm.list_models()}), n=5)
        raise EncoderError(
            f"No image encoder is called {arch!r}. Registered: {', '.join(REGISTRY)}; or any name of timm.list_models()"
            + (f", such as {', '.join(near)}." if near else ".")
        )
    state = None if weights is None else read_weights(weights)
    fetch = pretrained and state is None
    repo = arch[7:] if hub else getattr(timm.get_pretrained_cfg(arch), "hf_hub_id", None)
    options = {"num_classes": 0, **kwargs}
    if isinstance(options.get("mlp_layer"), str):
        options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
    try:
        if fetch and repo:
            _reach(repo)
        module = timm.create_model(arch, pretrained=fetch, **options)
    except Exception as error:
        if not fetch or isinstance(error, TypeError):
            raise EncoderError(f"timm cannot build {arch!r} with {options}: {error}") from error
        raise EncoderError(_no_access(name, repo, error)) from error
    if state is not None:
        load_weights(module, state, arch)
    return module


def _no_access(name: str, repo: str | None, error: Exception) -> str:
    page = f"https://huggingface.co/{repo}"
    gated = name in REGISTRY and REGISTRY[name].gated
    gate = f"It is gated: ask for access at {page}, then log in with 'hf auth login'" if gated else f"See {page}"
    free = ", ".join(key for key, entry in REGISTRY.items() if not entry.gated)
    return (
        f"The weights of {name!r} cannot be fetched: {error}. {gate}; or download them and pass weights=path, which works "
        f"offline. Encoders that need no access: {free}, or a timm model."
    )


def _reach(repo: str) -> None:
    """Fail at once if the hub will not serve ``repo``: timm would build the network first, then retry for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repo, f), str) for f in ("model.safetensors", "pytorch_model.bin")):
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise OSError("HF_HUB_OFFLINE is set and the hub's cache does not hold them")
    HfApi().model_info(repo, timeout=10)


@dataclass(frozen=True)
class Entry:
    """A registered encoder; sizes, normalisation and arguments as the model's authors state them."""

    architecture: str
    source: str
    dim: int
    input_size: int
    mean: Three
    std: Three
    licence: str
    gated: bool
    page: str
    citation: str
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)


REGISTRY = {
    "stain-stats": Entry(
        "StainStatistics", "sigmma-sc", 96, 112, (0, 0, 0), (1, 1, 1), "BSD-3-Clause", False,
        "embedded, no download", "Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291",
    ),
    "resnet50": Entry(
        "resnet50.tv_in1k", "timm", 2048, 224, IMAGENET_MEAN, IMAGENET_STD, "BSD-3-Clause", False,
        "https://huggingface.co/timm/resnet50.tv_in1k", "He et al. 2016, CVPR",
    ),
    "kaiko-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, HALF, HALF, "Kaiko non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "kaiko.ai et al. 2024, arXiv:2404.15217", {"dynamic_img_size": True},
    ),
    "uni": Entry(
        "vit_large_patch16_224", "timm", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Entry(
        "vit_giant_patch14_224", "timm", 1536, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI2-h", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "silu",
         "reg_tokens": 8, "dynamic_img_size": True},
    ),
    "h-optimus-0": Entry(
        "vit_giant_patch14_reg4_dinov2", "timm", 1536, 224, (0.707223, 0.578729, 0.703617),
        (0.211883, 0.230117, 0.177517), "Apache-2.0", True, "https://huggingface.co/bioptimus/H-optimus-0",
        "Saillard et al. 2024, github.com/bioptimus/releases",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
}  # fmt: skip
_told: set[str] = set()


def list_encoders() -> pd.DataFrame:
    """Registered encoders with architecture, library, dimension, input, licence, gating, page and citation."""
    import pandas as pd

    rows = {name: {k: v for k, v in asdict(entry).items() if k != "kwargs"} for name, entry in REGISTRY.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def get_encoder(name: str | ImageEncoder = "stain-stats", weights: str | Path | None = None) -> ImageEncoder:
    """Find an encoder.

    Parameters
    ----------
    name
        A registered name, a name of a timm model, or an :class:`ImageEncoder`, which is returned as it is.
    weights
        Local checkpoint; without one, names other than the embedded encoder's are fetched from their hub.

    Raises
    ------
    EncoderError
        Unknown name, no access to the weights, or an object that says nothing of its normalisation.
    """
    if not isinstance(name, str):
        if not isinstance(name, ImageEncoder):
            raise EncoderError(
                f"{type(name).__name__} says nothing of its input. Wrap it: sg.ImageEncoder(module, name=…, "
                "input_size=224, mean=(…), std=(…))."
            )
        if weights is not None:
            raise EncoderError(f"weights={str(weights)!r} goes with a name; {name.name!r} has its weights already.")
        return name
    if name not in REGISTRY:
        return ImageEncoder.from_timm(name, weights, pretrained=weights is None)
    entry = REGISTRY[name]
    if name == "stain-stats":
        from sigmma_sc.nn.stain import StainStatistics

        if weights is not None:
            raise EncoderError(f"'stain-stats' has no weights to load, got weights={str(weights)!r}.")
        module: nn.Module = StainStatistics()
    else:
        hub = entry.page.removeprefix("https://huggingface.co/")
        arch = entry.architecture if weights is not None or hub.startswith("timm/") else f"hf-hub:{hub}"
        module = _build(arch, weights, True, name, entry.kwargs)
        if name not in _told and entry.licence not in PERMISSIVE:
            logger.warning("Image encoder %s: licence %s, %s", name, entry.licence, entry.page)
        _told.add(name)
    spec = {"kind": "registry", "name": name, "weights": _absolute(weights)}
    return ImageEncoder(module, name, entry.input_size, entry.mean, entry.std, entry.dim, spec)


def _absolute(weights: str | Path | None) -> str | None:
    """Path as a saved model needs it: not relative to where the session happened to run."""
    return None if weights is None else str(Path(weights).expanduser().resolve())


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
