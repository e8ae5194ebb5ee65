"""Weights of image encoders: local files, the hub, and what to say when neither serves."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sigmma_sc._checks import EncoderError
from sigmma_sc.nn.registry import REGISTRY

if TYPE_CHECKING:
    from torch import Tensor, nn


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


def build_timm(arch: str, weights: str | Path | None, pretrained: bool, name: str, kwargs: dict[str, Any]) -> nn.Module:
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
