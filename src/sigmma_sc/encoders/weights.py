"""Weights of image encoders: local files, the hub, and what to say when neither serves."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

# What the pages of the hub call their weights, in the order of preference; the last is a training run's of open_clip.
FILES = ("model.safetensors", "pytorch_model.bin", "checkpoint.pt")


def read_weights(weights: str | Path) -> dict[str, Tensor]:
    """State dict in a local file, or in a folder downloaded from the hub.

    A state dict nested under ``state_dict`` or ``model`` is found, and ``module.``, which parallel training puts before
    every name, is taken off. Nothing in the file is executed: safetensors, or torch's restricted unpickler.

    Raises
    ------
    EncoderError
        The file does not exist, or holds something else.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        path = next((path / file for file in FILES if (path / file).is_file()), path)
    if not path.is_file():
        raise EncoderError(
            f"weights={str(weights)!r} is no file{', nor holds one of ' + ', '.join(FILES) if path.is_dir() else ''}. "
            "Give the path of a downloaded checkpoint."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return _read_pickle(path)
    except Exception as error:
        raise EncoderError(
            f"weights={str(weights)!r} cannot be read: {error}. Needed are tensors by name: .safetensors, or a file of "
            "torch.save(model.state_dict(), path)."
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    # Training checkpoints keep numpy numbers beside the weights (OmiCLIP's does), under the name of their time.
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f2", "f4", "f8"))]
    with torch.serialization.safe_globals([*numbers, *kinds]):
        # Mapped, an optimiser's state and a text tower that nobody asks for are never read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    while nest := next((k for k in ("state_dict", "model") if isinstance(state.get(k), dict)), None):
        state = state[nest]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("it holds something else than tensors")
    bare = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if bare else key: value for key, value in state.items()}


def load_weights(module: nn.Module, state: dict[str, Tensor], name: str, ignore: Iterable[str] = ()) -> None:
    """Load a state dict strictly, but for a classifier that the encoder does not have.

    Parameters
    ----------
    module
        May lie on the meta device: its parameters are replaced by copies in the data type they have.
    state
        Tensors by name.
    name
        To report.
    ignore
        Beginnings of names in ``state`` that belong to other parts of a model.

    Raises
    ------
    EncoderError
        It does not fit the architecture; the message names the keys.
    """
    expected = module.state_dict()
    heads = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    other = [f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)]
    other += [f"{head}.{part}" for head in ("classifier", "head", "fc") for part in ("weight", "bias")]
    state = {k: v for k, v in state.items() if k in expected or not k.startswith((*other, *ignore))}
    shapes = {k: (tuple(v.shape), tuple(expected[k].shape)) for k, v in state.items() if k in expected}
    require_fit(
        name,
        missing=expected.keys() - state.keys(),
        unexpected=state.keys() - expected.keys(),
        shapes=[f"{k} {found}, needed {needed}" for k, (found, needed) in shapes.items() if found != needed],
    )
    module.load_state_dict({k: v.to(expected[k].dtype, copy=True) for k, v in state.items()}, assign=True)


def require_fit(name: str, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]) -> None:
    """Raise :class:`EncoderError` if any key is missing, unexpected or of another shape."""
    wrong = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(shapes)}
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in wrong.items() if keys)
        fix = (
            f"Give the file of {REGISTRY[name].page}."
            if name in REGISTRY
            else "Check the architecture and what from_timm passes on to timm.create_model, e.g. img_size, init_values, "
            "reg_tokens, pad_type."
        )
        raise EncoderError(f"The weights do not fit {name!r} ({told}). {fix}")


def fetch_weights(name: str, instead: str | None = None) -> Path:
    """A registered encoder's file in the hub's cache; downloaded if it is not there.

    Parameters
    ----------
    name
        Of the encoder.
    instead
        How to give a local file, for the message; to :func:`~sigmma_sc.get_encoder` by default.

    Raises
    ------
    EncoderError
        No access or no connection; the message says where to ask for access and which encoders need none.
    """
    from huggingface_hub import hf_hub_download

    repo = REGISTRY[name].page.removeprefix("https://huggingface.co/")
    try:
        cached = in_cache(repo)
        if cached is not None:
            return cached
        shipped = on_hub(repo)
        file = next((file for file in FILES if file in shipped), None)
        if file is None:
            raise OSError(f"the page holds none of {', '.join(FILES)}")
        return Path(hf_hub_download(repo, file))
    except Exception as error:
        raise EncoderError(no_access(name, REGISTRY[name].page, error, instead)) from error


def no_access(name: str, page: str | None, error: Exception, instead: str | None = None) -> str:
    """What to say when an encoder's weights cannot be fetched; ``instead`` is how to give a local file."""
    way = "Download" if page is None else f"See {page}; or download"
    if name in REGISTRY and REGISTRY[name].gated:
        way = f"It is gated: ask for access at {page}, then log in with 'hf auth login'; or download"
    free = ", ".join(key for key, entry in REGISTRY.items() if not entry.gated)
    return (
        f"The weights of {name!r} cannot be fetched: {error}. {way} them and pass "
        f"{instead or f'sg.get_encoder({name!r}, weights=path)'}, which works offline. Encoders that need no access: {free}, "
        "or a timm model."
    )


def in_cache(repo: str, revision: str | None = None) -> Path | None:
    """Weights of a repository that an earlier download left in the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    # The hub takes a name in any case, and the cache keeps it as it was asked for: "MahmoodLab/uni" is "MahmoodLab/UNI".
    asked, start = repo.lower(), "models--"
    kept = [path.name for path in Path(constants.HF_HUB_CACHE).glob(f"{start}*")]
    named = [name.removeprefix(start).replace("--", "/", 1) for name in kept]
    repos = [repo, *(name for name in named if name.lower() == asked and name != repo)]
    found: list[Any] = [try_to_load_from_cache(name, file, revision=revision) for name in repos for file in FILES]
    return next((Path(path) for path in found if isinstance(path, str)), None)


def on_hub(repo: str, revision: str | None = None) -> set[str]:
    """Names of a repository's files.

    Fails at once if the hub does not answer: the libraries would build a network first, then try again for a minute.
    """
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise OSError("HF_HUB_OFFLINE is set and the hub's cache does not hold them")
    return {sibling.rfilename for sibling in HfApi().model_info(repo, revision=revision, timeout=10).siblings or ()}
