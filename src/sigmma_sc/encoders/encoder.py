"""Image encoders: published ones by name, networks of timm, or any module of the user's, all used in the same way."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmma_sc._checks import require_whole
from sigmma_sc.encoders.architectures import build_registered, build_timm, page_of
from sigmma_sc.encoders.registry import IMAGENET_MEAN, IMAGENET_STD, RGB, find_entry, require_normalisation
from sigmma_sc.errors import EncoderError

logger = logging.getLogger("sigmma_sc")
_warned: set[str] = set()


class ImageEncoder(nn.Module):
    """An image encoder with its input size and normalisation.

    Parameters
    ----------
    module
        ``nn.Module`` or callable that maps ``(B, 3, S, S)`` float to ``(B, D)``.
    name
        Name of the encoder in messages, saved models and the cache of features.
    input_size
        Side S of the crops in px.
    mean, std
        Mean and standard deviation with which RGB in [0, 1] is normalised.
    dim
        Length D of a feature vector; by default, two blank crops are encoded to find it.
    spec
        JSON-safe description from which :meth:`from_spec` rebuilds the encoder. A module of your own, or one of random
        weights, has none: it has to be passed again when a saved model is loaded.

    Attributes
    ----------
    sizes
        Sides of crops in px that the encoder takes: ``input_size``, and those that :meth:`allow` was called with.

    Raises
    ------
    EncoderError
        The output is not a finite ``(B, D)``, or an argument is out of range.

    See Also
    --------
    get_encoder : Build an encoder by its name.
    register_encoder : Give an encoder of your own a name.

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
        mean: RGB = IMAGENET_MEAN,
        std: RGB = IMAGENET_STD,
        dim: int | None = None,
        spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        require_whole(input_size, "input_size")
        if dim is not None:
            require_whole(dim, "dim")
        self.mean, self.std = require_normalisation(mean, std)
        self.module = module
        self.name = name
        self.input_size = int(input_size)
        self.spec = spec
        self.sizes = {self.input_size}
        place = torch.device("cpu")
        if isinstance(module, nn.Module):
            place = next((parameter.device for parameter in module.parameters()), place)
        self.register_buffer("_mean", torch.tensor(self.mean, device=place).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std, device=place).view(3, 1, 1), persistent=False)
        self.dim = 0 if dim is None else int(dim)
        if dim is None:
            self.dim = self._measured_dim()

    @property
    def device(self) -> torch.device:
        """Device of the normalisation and the weights, to which crops are moved."""
        return self._mean.device

    def _measured_dim(self) -> int:
        """Length of a feature vector, from two black crops."""
        side = self.input_size
        try:
            out = self.encode(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(
                f"Image encoder {self.name!r} fails on crops of {side} px, {type(error).__name__}: {error}. "
                f"{self._advice()}"
            ) from error
        if not torch.isfinite(out).all():
            raise EncoderError(f"Image encoder {self.name!r} gives NaN or infinity for black. Check mean and std.")
        return int(out.shape[1])

    def _advice(self) -> str:
        """What to mend when the network fails on crops of its input size."""
        if isinstance(self.module, nn.Module):
            for parameter in self.module.parameters():
                if parameter.is_floating_point() and parameter.dtype != torch.float32:
                    return f"Its weights are {parameter.dtype}, and crops come as torch.float32: pass module.float()."
        side = self.input_size
        return f"Check input_size={side}; a timm ViT for another size than its own is built with img_size={side}."

    def features(self, crops: Tensor) -> Tensor:
        """Encode crops in the module's own mode, with gradient.

        For training the encoder; :meth:`encode` is the frozen counterpart.

        Parameters
        ----------
        crops
            RGB crops ``(B, 3, S, S)`` uint8, S among ``sizes``, which the encoder normalises itself.

        Returns
        -------
        Feature vectors ``(B, D)`` float32.

        Raises
        ------
        EncoderError
            The crops are of another type or size, or the network's output is not ``(B, D)``.
        """
        shapes = [(3, side, side) for side in self.sizes]
        if crops.dtype != torch.uint8 or crops.ndim != 4 or tuple(crops.shape[1:]) not in shapes:
            side = self.input_size
            raise EncoderError(
                f"Image encoder {self.name!r} takes uint8 crops (B, 3, {side}, {side}), got {crops.dtype} "
                f"{tuple(crops.shape)}. Resample the crops to its input_size; it normalises them itself."
            )
        if not len(crops) and self.dim:
            return self._mean.new_zeros(0, self.dim)
        # In place: each new image of the batch costs as much as its arithmetic.
        images = crops.to(self.device).to(self._mean.dtype).div_(255).sub_(self._mean).div_(self._std)
        out = self.module(images)
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(found, tuple) or len(found) != 2 or found != (len(crops), self.dim or found[1]):
            raise EncoderError(
                f"Image encoder {self.name!r} maps {tuple(crops.shape)} to {found}; ({len(crops)}, {self.dim or 'D'}) is "
                "needed. Pool its tokens or feature map first, e.g. with timm's num_classes=0, or mend dim."
            )
        return out.float()

    def allow(self, size: int) -> None:
        """Take crops of another side than ``input_size`` too, if the network can encode a blank one.

        Convolutional networks usually can. A timm ViT can if it was built with ``dynamic_img_size=True`` and its patches
        divide the side.

        Parameters
        ----------
        size
            Side of the crops in px.

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
        """Encode crops in eval mode and without gradient.

        Parameters
        ----------
        crops
            RGB crops ``(B, 3, S, S)`` uint8, S among ``sizes``, which the encoder normalises itself.

        Returns
        -------
        Feature vectors ``(B, D)`` float32.

        Raises
        ------
        EncoderError
            The crops are of another type or size, or the network's output is not ``(B, D)``.
        """
        # Each submodule gets its own mode back: some may be frozen and some not.
        in_training = [part for part in self.modules() if part.training]
        for part in in_training:
            part.training = False
        try:
            return self.features(crops)
        finally:
            for part in in_training:
                part.training = True

    def forward(self, crops: Tensor) -> Tensor:
        """Encode as :meth:`encode` does."""
        return self.encode(crops)

    def fingerprint(self) -> str:
        """SHA-256 over name, input size, normalisation and every parameter and buffer.

        It does not cover what an encoder does with its weights. Therefore the cache of features, checkpoints and saved
        models compare its output for one crop as well.
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
        mean: RGB | None = None,
        std: RGB | None = None,
        pretrained: bool = False,
        name: str | None = None,
        **kwargs: object,
    ) -> ImageEncoder:
        """Build a timm model without its classifier.

        Parameters
        ----------
        arch
            timm's name of the architecture, also ``"hf-hub:…"``.
        weights
            Local checkpoint, ``.safetensors``, ``.pt``, ``.pth`` or ``.bin``. A classifier in it is dropped; everything
            else must fit exactly.
        input_size
            Side of the crops in px; timm's by default.
        mean, std
            Mean and standard deviation with which RGB in [0, 1] is normalised; timm's by default.
        pretrained
            Whether to fetch timm's own weights if no local file is given.
        name
            Name of the encoder in messages, saved models and the cache of features; ``arch`` by default.
        **kwargs
            Further arguments of ``timm.create_model``; ``mlp_layer`` may be the name of a class in ``timm.layers``.

        Raises
        ------
        EncoderError
            timm does not have the network, the weights cannot be had, or they do not fit.

        Examples
        --------
        >>> encoder = sg.ImageEncoder.from_timm("resnet18")  # random: neither weights nor pretrained is given
        >>> encoder.dim, encoder.input_size
        (512, 224)
        """
        import timm

        module = build_timm(arch, weights, pretrained, name or arch, kwargs)
        config = timm.data.resolve_model_data_config(module)
        given = {"input_size": input_size, "mean": mean, "std": std, "pretrained": pretrained, "name": name}
        spec: dict[str, Any] | None = {"kind": "timm", "arch": arch, "weights": _absolute(weights), **given, **kwargs}
        if not (weights or pretrained) or not _is_json(spec):
            spec = None
        if pretrained and weights is None:
            licence = (getattr(module, "pretrained_cfg", None) or {}).get("license")
            _warn_of_licence(arch, licence, page_of(arch))
        sizes: tuple[Any, ...] = (input_size, kwargs.get("img_size"), config["input_size"][-1])
        size = next(size for size in sizes if size is not None)
        return cls(module, name or arch, size, mean or config["mean"], std or config["std"], spec=spec)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> ImageEncoder:
        """Rebuild an encoder from its ``spec``; a local checkpoint has to be where it was.

        Raises
        ------
        EncoderError
            The encoder cannot be built, or it was registered by a user and is not registered now.
        """
        options: dict[str, Any] = {}
        for key, value in spec.items():
            if key != "kind":
                options[key] = tuple(value) if isinstance(value, list) else value
        if spec["kind"] == "timm":
            return cls.from_timm(**options)
        name = options["name"]
        if find_entry(name) is None:
            raise EncoderError(
                f"Image encoder {name!r} is not registered in this session; a user had registered it. Call "
                f"sg.register_encoder({name!r}, …) first, or install the package that registers it."
            )
        return get_encoder(**options)


def get_encoder(
    name: str | ImageEncoder = "stain-stats", weights: str | Path | None = None, **arguments: object
) -> ImageEncoder:
    """Build an encoder by its name.

    Parameters
    ----------
    name
        A registered name, the name of a timm model, or an :class:`ImageEncoder`, which is returned as it is.
    weights
        Local checkpoint as its page on the hub ships it, a file or the folder with it. Without one, the weights are
        fetched from the hub, or from its cache when ``HF_HUB_OFFLINE=1``. Embedded encoders have none.
    **arguments
        Arguments of :meth:`ImageEncoder.from_timm`, for a timm model.

    Raises
    ------
    EncoderError
        The name is unknown, the weights cannot be had, or the object is a module without normalisation.
    MissingPackageError
        The encoder needs transformers or open_clip, of the extra ``encoders``.

    See Also
    --------
    list_encoders : Names, licences and pages of the registered encoders.
    register_encoder : Add an encoder of your own to them.

    Examples
    --------
    >>> sg.get_encoder("stain-stats").dim
    96
    >>> sg.get_encoder("uni", weights="uni/pytorch_model.bin")  # doctest: +SKIP
    """
    if isinstance(name, ImageEncoder):
        if weights is not None:
            raise EncoderError(f"weights={str(weights)!r} goes with a name; {name.name!r} has its weights already.")
        return name
    if not isinstance(name, str):
        raise EncoderError(
            f"{type(name).__name__} has no input size and normalisation. Wrap it: sg.ImageEncoder(module, name=…, "
            "input_size=224, mean=(…), std=(…))."
        )
    entry = find_entry(name)
    if entry is None:
        options: dict[str, Any] = {"pretrained": weights is None, **arguments}
        return ImageEncoder.from_timm(name, weights, **options)
    if arguments:
        raise EncoderError(
            f"{', '.join(arguments)}: arguments go with a timm model; {name!r} is registered with its own."
        )
    module = build_registered(name, entry, weights)
    if entry.licence and entry.source != "sigmma-sc":
        _warn_of_licence(name, entry.licence, entry.page)
    spec = {"kind": "registry", "name": name, "weights": _absolute(weights)}
    return ImageEncoder(module, name, entry.input_size, entry.mean, entry.std, entry.dim, spec)


def _warn_of_licence(name: str, licence: str | None, page: str | None) -> None:
    """Log a licence once in a process, as a warning: a licence binds at any verbosity but ``"error"``."""
    if name not in _warned:
        logger.warning("Image encoder %s: licence %s, %s", name, licence or "not stated", page or "no page known")
    _warned.add(name)


def _absolute(weights: str | Path | None) -> str | None:
    """Path that a saved model can keep, independent of the session's working directory."""
    return None if weights is None else str(Path(weights).expanduser().resolve())


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
