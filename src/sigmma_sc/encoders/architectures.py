"""Networks of image encoders, built by timm, open_clip, transformers or a user's function, and pooled as their authors do.

Where a library's model returns more than one vector for a crop, a forward hook pools them. The module stays the
library's own, so attention maps, adapters and freezing find its blocks under their usual names.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sigmma_sc._checks import require_package
from sigmma_sc.encoders.registry import CLASS_AND_PATCHES, PROJECTED, Entry, all_entries
from sigmma_sc.encoders.weights import (
    fetch_weights,
    in_cache,
    load_weights,
    no_access,
    on_hub,
    read_weights,
    require_all_loaded,
)
from sigmma_sc.errors import EncoderError, SigmmaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sigmma_sc.encoders.registry import Builder

HUB = ("hf-hub:", "hf_hub:")


class _Output(Protocol):
    last_hidden_state: Tensor
    image_embeds: Tensor


def build_registered(name: str, entry: Entry, weights: str | Path | None) -> nn.Module | Callable[[Tensor], Tensor]:
    """Build the network of a registered encoder with its weights: ``(B, 3, S, S)`` → ``(B, D)``.

    A missing package, file or access is noticed before anything is built. ``weights`` is a local file or folder;
    ``None`` takes the registered one, or the one on the encoder's page.
    """
    path = entry.weights if weights is None else Path(weights).expanduser()
    if entry.by_user and entry.build is not None and path is not None and not path.exists():
        raise EncoderError(
            f"weights={str(path)!r} of image encoder {name!r} do not exist. Give the path of a checkpoint."
        )
    if entry.build is not None:
        return _by_function(name, entry.build, entry.architecture, path)
    for package in ("open_clip", "transformers"):
        if package in entry.source:
            require_package(package, "encoders")
    if entry.by_user:
        require_known(entry.architecture)
        return build_timm(entry.architecture, path or fetch_weights(name, entry), False, name, entry.kwargs)
    state = read_weights(path or fetch_weights(name, entry))
    if entry.source == "transformers":
        return _of_transformers(name, entry, state)
    with torch.device("meta"):  # names and shapes alone: initial weights of a giant take longer than reading its own
        module = _NETWORKS[entry.source](entry)
    if "open_clip" in entry.source:
        state = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    load_weights(module, state, name, Conch.unused if isinstance(module, Conch) else (), entry.page)
    return module


def _by_function(
    name: str, builder: Builder, described: str, path: Path | None
) -> nn.Module | Callable[[Tensor], Tensor]:
    """Network of a function that was registered for an encoder, with errors that name both."""
    given = None if path is None else str(path)
    try:
        network = builder(path)
    except SigmmaError:
        raise
    except Exception as error:
        raise EncoderError(
            f"Image encoder {name!r} cannot be built: {described}, which is registered for it, fails with "
            f"weights={given!r}, {type(error).__name__}: {error}. Mend the function or give other weights."
        ) from error
    if not callable(network):
        raise EncoderError(
            f"Image encoder {name!r} cannot be built: {described}, which is registered for it, returns {network!r}. "
            "Have it return a torch module."
        )
    return network


def _of_timm(entry: Entry) -> nn.Module:
    import timm

    module = timm.create_model(entry.architecture, pretrained=False, num_classes=0, **_classes(entry.kwargs))
    if entry.pooling == CLASS_AND_PATCHES:
        module.register_forward_hook(_class_and_patch_mean)
    return module


def _class_and_patch_mean(module: nn.Module, _: object, tokens: Tensor) -> Tensor:
    """Class token beside the mean of the patch tokens; register tokens between them are left out."""
    return torch.cat([tokens[:, 0], tokens[:, module.num_prefix_tokens :].mean(1)], dim=1)


def _of_open_clip(entry: Entry) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(entry.architecture)
    module = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"}).visual
    module.register_forward_hook(_unit_length)
    return module


def _unit_length(module: nn.Module, _: object, out: tuple[Tensor, Tensor]) -> Tensor:
    """CoCa's image embedding as open_clip's ``encode_image`` gives it, without the tokens for captions."""
    return functional.normalize(out[0], dim=-1)


class Conch(nn.Module):
    """CONCH's image tower as its authors use it on slides: attention pooling, neither projected nor normalised.

    ViT-B/16 at 448 px; one learned query attends to class and patch tokens. Its modules are named as in the checkpoint.
    """

    unused = ("proj_contrast", "attn_pool_caption.", "ln_caption.")  # further tensors of the checkpoint

    def __init__(self) -> None:
        import timm
        from open_clip.transformer import AttentionalPooler

        super().__init__()
        self.trunk = timm.create_model(
            "vit_base_patch16_224", pretrained=False, img_size=448, num_classes=0, global_pool="", dynamic_img_size=True
        )
        self.attn_pool_contrast = AttentionalPooler(512, self.trunk.num_features, n_head=8, n_queries=1)
        self.ln_contrast = nn.LayerNorm(512)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed ``(B, 3, 448, 448)`` normalised crops to ``(B, 512)``."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk(crops))[:, 0])


_NETWORKS = {"timm": _of_timm, "open_clip": _of_open_clip, "timm + open_clip": lambda entry: Conch()}


def _of_transformers(name: str, entry: Entry, state: dict[str, Tensor]) -> nn.Module:
    """Built by ``from_pretrained``: its names of parameters change between versions, and it translates files."""
    import transformers

    model = getattr(transformers, entry.architecture)
    other = ("text_model.", "text_projection.", "logit_scale")
    own = {}
    for key, value in state.items():
        # Older files list the positions 0, 1, …, which are no weights.
        if not key.startswith(other) and not key.endswith(".position_ids"):
            own[key] = value.float().clone()
    module, report = model.from_pretrained(
        None,
        config=model.config_class(**entry.kwargs),
        state_dict=own,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    require_all_loaded(name, report, entry.page)
    module.register_forward_hook(_image_embeds if entry.pooling == PROJECTED else _class_token)
    return module


def _image_embeds(module: nn.Module, _: object, out: _Output) -> Tensor:
    return out.image_embeds


def _class_token(module: nn.Module, _: object, out: _Output) -> Tensor:
    return out.last_hidden_state[:, 0]


def build_timm(
    architecture: str, weights: str | Path | None, pretrained: bool, name: str, kwargs: dict[str, Any]
) -> nn.Module:
    """Build any timm network with its weights; a missing file or missing access is noticed before anything is built.

    Without a local checkpoint, ``pretrained`` fetches timm's own weights, and the weights are random otherwise.
    """
    import timm

    fetch = pretrained and weights is None
    repo, revision = require_known(architecture, fetch)
    state = None if weights is None else read_weights(weights)
    options = {"num_classes": 0, **_classes(kwargs)}
    try:
        if fetch and repo is not None and in_cache(repo, revision) is None:
            on_hub(repo, revision)
        module = timm.create_model(architecture, pretrained=fetch, **options)
    except Exception as error:
        if not fetch or isinstance(error, (TypeError, AttributeError, AssertionError)):
            raise EncoderError(f"timm cannot build {architecture!r} with {options}: {error}") from error
        instead = f"sg.get_encoder({architecture!r}, weights=path)"
        raise EncoderError(no_access(name, page_of(architecture), error, instead=instead)) from error
    if state is not None:
        load_weights(module, state, name)
    return module


def page_of(architecture: str) -> str | None:
    """Page of the weights of a timm model, if there is one."""
    import timm

    repo, _ = _on_hub(architecture)
    if repo is not None:
        return f"https://huggingface.co/{repo}"
    return getattr(timm.get_pretrained_cfg(architecture), "origin_url", None)


def _on_hub(architecture: str) -> tuple[str | None, str | None]:
    """Repository and revision of a timm model's weights; ``None`` if they are not on the hub."""
    import timm

    if architecture.startswith(HUB):
        repo, _, revision = architecture[7:].partition("@")
        return repo, revision or None
    return getattr(timm.get_pretrained_cfg(architecture), "hf_hub_id", None), None


def require_known(architecture: str, fetch: bool = False) -> tuple[str | None, str | None]:
    """Repository and revision of a timm network's weights; ``None`` if not on the hub, an error if timm has none."""
    import timm

    if architecture.startswith(HUB):
        return _on_hub(architecture)
    if not timm.is_model(architecture):
        registered = all_entries()
        near = difflib.get_close_matches(architecture, sorted({*registered, *timm.list_models()}), n=5)
        raise EncoderError(
            f"No image encoder is called {architecture!r}. Registered: {', '.join(registered)}; or any name of "
            + "timm.list_models()"
            + (f", such as {', '.join(near)}." if near else ".")
            + " To add one, call sg.register_encoder. On the command line, --import MODULE names a module that does."
        )
    base, _, tag = architecture.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise EncoderError(f"timm has no weights {tag!r} of {base!r}. It has {', '.join(map(repr, tags)) or 'none'}.")
    if fetch and not tags:
        raise EncoderError(
            f"timm has no weights of {architecture!r}. Give a checkpoint, weights=path, or take random weights: "
            f"ImageEncoder.from_timm({architecture!r})."
        )
    return _on_hub(architecture)


def _classes(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for timm, with ``mlp_layer`` replaced by the class of that name in ``timm.layers``."""
    import timm

    layer = kwargs.get("mlp_layer")
    if not isinstance(layer, str):
        return kwargs
    if not hasattr(timm.layers, layer):
        near = difflib.get_close_matches(layer, dir(timm.layers), n=3)
        raise EncoderError(
            f"mlp_layer={layer!r} is no class in timm.layers." + (f" Did you mean {', '.join(near)}?" if near else "")
        )
    return {**kwargs, "mlp_layer": getattr(timm.layers, layer)}
