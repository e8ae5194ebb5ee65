"""Weights of image encoders: local files, the hub, and the message if neither has them."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigmma_sc.encoders.registry import REGISTRY, Entry
from sigmma_sc.errors import EncoderError

# Names of weights on the pages of the hub, in the order of preference; open_clip's training writes the last.
FILES = ("model.safetensors", "pytorch_model.bin", "checkpoint.pt")

HUB_PAGE = "https://huggingface.co/"


def read_weights(weights: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a local file, or in a folder downloaded from the hub, or raise :class:`EncoderError`.

    A state dict nested under ``state_dict`` or ``model`` is found. The prefix ``module.``, which parallel training puts
    before every name, is removed. Nothing in the file is executed: safetensors, or torch's restricted unpickler.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        path = next((path / file for file in FILES if (path / file).is_file()), path)
    if not path.is_file():
        nor = f", nor holds one of {', '.join(FILES)}" if path.is_dir() else ""
        raise EncoderError(f"weights={str(weights)!r} is no file{nor}. Give the path of a downloaded checkpoint.")
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
    # Training checkpoints keep numpy numbers beside the weights, as OmiCLIP's does. numpy 2 renamed their module.
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed.append(np.dtype)
    allowed += [type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f2", "f4", "f8")]
    with torch.serialization.safe_globals(allowed):
        # Mapped into memory, an optimiser's state and a text tower are never read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    while nest := next((key for key in ("state_dict", "model") if isinstance(state.get(key), dict)), None):
        state = state[nest]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("it holds something else than tensors")
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def load_weights(
    module: nn.Module, state: dict[str, Tensor], name: str, ignore: Iterable[str] = (), page: str = ""
) -> None:
    """Load a state dict strictly, except for a classifier that the encoder lacks, and for the prefixes ``ignore``.

    The module may lie on the meta device: its parameters are replaced by copies of their data type.
    """
    expected = module.state_dict()
    other = (*_classifiers(module), *ignore)
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(other)}
    misshapen = []
    for key, value in state.items():
        if key in expected and value.shape != expected[key].shape:
            misshapen.append(f"{key} {tuple(value.shape)}, needed {tuple(expected[key].shape)}")
    _require_fit(name, page, expected.keys() - state.keys(), state.keys() - expected.keys(), misshapen)
    own = {key: value.to(expected[key].dtype, copy=True) for key, value in state.items()}
    module.load_state_dict(own, assign=True)


def _classifiers(module: nn.Module) -> list[str]:
    """Prefixes of the names that classifiers have in checkpoints: timm's name for it, and the usual ones."""
    heads = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes = [f"{head}." for head in ([heads] if isinstance(heads, str) else heads)]
    for head in ("classifier", "head", "fc"):
        prefixes += [f"{head}.weight", f"{head}.bias"]
    return prefixes


def require_all_loaded(name: str, report: dict[str, Any], page: str) -> None:
    """Check the loading report of transformers' ``from_pretrained``: all tensors are there, and no others."""
    misshapen = [f"{key} {tuple(given)}, needed {tuple(needed)}" for key, given, needed in report["mismatched_keys"]]
    _require_fit(name, page, report["missing_keys"], report["unexpected_keys"], misshapen)


def _require_fit(
    name: str, page: str, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]
) -> None:
    wrong = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(misshapen)}
    if not any(wrong.values()):
        return
    counts = [f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in wrong.items() if keys]
    fix = f"Give the file of {page}."
    if not page:
        fix = (
            "Check architecture and arguments for timm.create_model, e.g. img_size, init_values, reg_tokens, pad_type."
        )
    raise EncoderError(f"The weights do not fit {name!r} ({'; '.join(counts)}). {fix}")


def fetch_weights(name: str, entry: Entry, instead: str | None = None) -> Path:
    """Path of a registered encoder's weights in the hub's cache; they are downloaded first if they are not there.

    ``instead`` tells how to give a local file; by default, an argument of :func:`~sigmma_sc.get_encoder`.
    """
    from huggingface_hub import hf_hub_download

    try:
        if not entry.page.startswith(HUB_PAGE):
            raise OSError(f"page={entry.page!r} is not on {HUB_PAGE}")
        repo = entry.page.removeprefix(HUB_PAGE)
        cached = in_cache(repo)
        if cached is not None:
            return cached
        shipped = on_hub(repo)
        file = next((file for file in FILES if file in shipped), None)
        if file is None:
            raise OSError(f"the page holds none of {', '.join(FILES)}")
        return Path(hf_hub_download(repo, file))
    except Exception as error:
        raise EncoderError(no_access(name, entry.page, error, entry.gated, instead)) from error


def no_access(name: str, page: str | None, error: Exception, gated: bool = False, instead: str | None = None) -> str:
    """Message that the weights on ``page`` cannot be fetched, and how to get them or (``instead``) give a file."""
    way = f"See {page}; or download" if page else "Download"
    if gated:
        way = f"It is gated: ask for access at {page}, then log in with 'hf auth login'; or download"
    free = ", ".join(key for key, entry in REGISTRY.items() if not entry.gated)
    return (
        f"The weights of {name!r} cannot be fetched: {error}. {way} them and pass "
        f"{instead or f'sg.get_encoder({name!r}, weights=path)'}, which works offline. Encoders that need no access: {free}, "
        "or a timm model."
    )


def in_cache(repo: str, revision: str | None = None) -> Path | None:
    """Weights of a repository that an earlier download left in the hub's cache, if any."""
    from huggingface_hub import constants, try_to_load_from_cache

    # The hub takes a name in any case and the cache keeps it as it was given: "MahmoodLab/uni" is "MahmoodLab/UNI".
    start = "models--"
    repos = [repo]
    for folder in Path(constants.HF_HUB_CACHE).glob(f"{start}*"):
        kept = folder.name.removeprefix(start).replace("--", "/", 1)
        if kept.lower() == repo.lower() and kept != repo:
            repos.append(kept)
    for name in repos:
        for file in FILES:
            path = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(path, str):
                return Path(path)
    return None


def on_hub(repo: str, revision: str | None = None) -> set[str]:
    """Names of a repository's files; fails at once if the hub does not answer, where the libraries try for a minute."""
    from huggingface_hub import HfApi

    if is_offline():
        raise OSError("HF_HUB_OFFLINE is set and the hub's cache does not hold them")
    info = HfApi().model_info(repo, revision=revision, timeout=10)
    return {sibling.rfilename for sibling in info.siblings or ()}


def is_offline() -> bool:
    """Whether the hub must not be asked, by the variable that its own library reads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
