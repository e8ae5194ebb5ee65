"""Image encoders: a registry, timm, or any module of the user's behind one face (paper, section 5.1)."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigmma_sc._checks import require_positive
from sigmma_sc.encoders.architectures import build_registered, build_timm, page_of
from sigmma_sc.encoders.registry import IMAGENET_MEAN, IMAGENET_STD, REGISTRY, Three
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("sigmma_sc")
_told: set[str] = set()


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

    Examples
    --------
    >>> encoder = sg.ImageEncoder(lambda x: x.mean((2, 3)), name="mean colour", input_size=64)
    >>> encoder.dim
    3
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
        self.mean, self.std = _three(mean), _three(std)
        if not (len(self.mean) == len(self.std) == 3 and min(self.std) > 0):
            raise EncoderError(f"mean={mean!r} and std={std!r} must be three numbers each, std positive.")
        self.module, self.name, self.input_size, self.dim, self.spec = module, name, int(input_size), dim, spec
        self.sizes = {self.input_size}  # of crops that it is known to take
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        place = next(module.parameters(), self._mean).device if isinstance(module, nn.Module) else "cpu"
        self._mean, self._std = self._mean.to(place), self._std.to(place)
        if dim is None:
            out = self._tried()
            if not torch.isfinite(out).all():
                raise EncoderError(
                    f"Image encoder {name!r} gives NaN or infinity for a black crop. Check mean and std."
                )
            self.dim = int(out.shape[1])

    def _tried(self) -> Tensor:
        """What it makes of two black crops, or an error of ours in the place of the network's."""
        side = self.input_size
        try:
            return self.encode(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        except EncoderError:
            raise
        except Exception as error:
            parts = self.module.parameters() if isinstance(self.module, nn.Module) else ()
            odd = next((p.dtype for p in parts if p.is_floating_point() and p.dtype != torch.float32), None)
            fix = (
                f"Check input_size={side}; a timm ViT for another size than its own is built with img_size={side}."
                if odd is None
                else f"Its weights are {odd}, and crops come as torch.float32: pass module.float()."
            )
            raise EncoderError(
                f"Image encoder {self.name!r} fails on crops of {side} px, {type(error).__name__}: {error}. {fix}"
            ) from error

    def features(self, crops: Tensor) -> Tensor:
        """Encode ``(B, 3, S, S)`` uint8 RGB crops to ``(B, D)`` float32 in the module's own mode, with gradient.

        For training the encoder; :meth:`encode` is the frozen counterpart.
        """
        shape = tuple(crops.shape[1:])
        if crops.dtype != torch.uint8 or crops.ndim != 4 or shape not in {(3, side, side) for side in self.sizes}:
            side = self.input_size
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

    def allow(self, size: int) -> None:
        """Take crops of another side than ``input_size`` too; tried on a blank one.

        Convolutional networks do, as a rule; a timm ViT that was built with ``dynamic_img_size=True``, if its patches fit.

        Raises
        ------
        EncoderError
            The network does not take them.
        """
        if size in self.sizes:
            return
        self.sizes.add(size)
        try:
            self.encode(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except Exception as error:
            self.sizes.remove(size)
            raise EncoderError(
                f"Image encoder {self.name!r} does not take crops of {size} px: {error}. Leave crop_sizes out, or use an encoder "
                "for any size: a convolutional one, or a timm ViT built with dynamic_img_size=True and a size that its patches "
                "divide."
            ) from error

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

        What an encoder does with its weights is not in it: the cache of features, checkpoints and saved models compare its
        output for one crop as well.
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

        Examples
        --------
        >>> encoder = sg.ImageEncoder.from_timm("resnet18")  # random: neither weights nor pretrained is given
        >>> encoder.dim, encoder.input_size
        (512, 224)
        """
        import timm

        module = build_timm(arch, weights, pretrained, name or arch, kwargs)
        config = timm.data.resolve_model_data_config(module)
        size = next(s for s in (input_size, kwargs.get("img_size"), config["input_size"][-1]) if s is not None)
        told = {"input_size": input_size, "mean": mean, "std": std, "pretrained": pretrained, "name": name}
        spec: dict[str, Any] | None = {"kind": "timm", "arch": arch, "weights": _absolute(weights), **told, **kwargs}
        if not (weights or pretrained) or not _is_json(spec):
            spec = None
        if pretrained and weights is None:
            _tell_licence(arch, (module.pretrained_cfg or {}).get("license"), page_of(arch))
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


def get_encoder(
    name: str | ImageEncoder = "stain-stats", weights: str | Path | None = None, **arguments: Any
) -> ImageEncoder:
    """Find an encoder.

    Parameters
    ----------
    name
        A registered name, a name of a timm model, or an :class:`ImageEncoder`, which is returned as it is.
    weights
        Local checkpoint as its page on the hub ships it, a file or the folder with it; without one, names other than the
        embedded encoder's are fetched from the hub, or from its cache when ``HF_HUB_OFFLINE=1``.
    **arguments
        Of :meth:`ImageEncoder.from_timm`, for a timm model.

    Raises
    ------
    EncoderError
        Unknown name, no access to the weights, or an object that says nothing of its normalisation.
    MissingPackageError
        The encoder needs transformers or open_clip, of the extra ``encoders``.

    Examples
    --------
    >>> sg.get_encoder("stain-stats").dim
    96
    >>> sg.get_encoder("uni", weights="uni/pytorch_model.bin")  # doctest: +SKIP
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
        return ImageEncoder.from_timm(name, weights, **{"pretrained": weights is None, **arguments})
    if arguments:
        raise EncoderError(
            f"{', '.join(arguments)}: arguments go with a timm model; {name!r} is registered with all of its own."
        )
    entry = REGISTRY[name]
    if name == "stain-stats":
        from sigmma_sc.encoders.stain import StainStatistics

        if weights is not None:
            raise EncoderError(f"'stain-stats' has no weights to load, got weights={str(weights)!r}.")
        module: nn.Module = StainStatistics()
    else:
        module = build_registered(name, weights)
        _tell_licence(name, entry.licence, entry.page)
    spec = {"kind": "registry", "name": name, "weights": _absolute(weights)}
    return ImageEncoder(module, name, entry.input_size, entry.mean, entry.std, entry.dim, spec)


def _tell_licence(name: str, licence: str | None, page: str | None) -> None:
    """Once a process, and as a warning: Python shows nothing below to a user who has set up no logging."""
    if name not in _told:
        logger.warning("Image encoder %s: licence %s, %s", name, licence or "not stated", page or "no page known")
    _told.add(name)


def _three(value: Any) -> tuple[float, ...]:
    """Numbers, or nothing where there are none."""
    try:
        return tuple(map(float, value))
    except (TypeError, ValueError):
        return ()


def _absolute(weights: str | Path | None) -> str | None:
    """Path as a saved model needs it: not relative to where the session happened to run."""
    return None if weights is None else str(Path(weights).expanduser().resolve())


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
