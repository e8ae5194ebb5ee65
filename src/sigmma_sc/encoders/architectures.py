"""Networks of image encoders, built by timm, open_clip or transformers and pooled as their authors do.

Pooling is a forward hook where the library's model returns more than one vector a crop: the module stays the library's
own, so that what looks for its blocks (attention maps, adapters, freezing) finds them under their usual names.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sigmma_sc._checks import require_package
from sigmma_sc.encoders.registry import CLASS_AND_PATCHES, PROJECTED, REGISTRY, Entry
from sigmma_sc.encoders.weights import (
    fetch_weights,
    in_cache,
    load_weights,
    no_access,
    on_hub,
    read_weights,
    require_fit,
)
from sigmma_sc.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path

HUB = ("hf-hub:", "hf_hub:")


def build_registered(name: str, weights: str | Path | None) -> nn.Module:
    """Network of a registered encoder with its weights, ``(B, 3, S, S)`` → ``(B, D)``.

    What fails for want of a package, a file or access fails before anything is built.

    Raises
    ------
    MissingPackageError
        The library that the encoder needs is not installed.
    EncoderError
        The weights cannot be had or do not fit.
    """
    entry = REGISTRY[name]
    for package in ("open_clip", "transformers"):
        if package in entry.source:
            require_package(package, "encoders")
    state = read_weights(fetch_weights(name) if weights is None else weights)
    if entry.source == "transformers":
        return _of_transformers(name, entry, state)
    with torch.device("meta"):  # names and shapes alone: initial weights of a giant take longer than reading its own
        module = _NETWORKS[entry.source](entry)
    if "open_clip" in entry.source:
        state = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    load_weights(module, state, name, ignore=Conch.unused if isinstance(module, Conch) else ())
    return module


def _of_timm(entry: Entry) -> nn.Module:
    import timm

    module = timm.create_model(entry.architecture, pretrained=False, num_classes=0, **_classes(entry.kwargs))
    if entry.pooling == CLASS_AND_PATCHES:
        module.register_forward_hook(_class_and_patch_mean)
    return module


def _class_and_patch_mean(module: nn.Module, _: Any, tokens: Tensor) -> Tensor:
    """Class token beside the mean of the patch tokens; register tokens between them are left out."""
    return torch.cat([tokens[:, 0], tokens[:, module.num_prefix_tokens :].mean(1)], dim=1)


def _of_open_clip(entry: Entry) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(entry.architecture)
    module = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"}).visual
    module.register_forward_hook(_unit_length)
    return module


def _unit_length(module: nn.Module, _: Any, out: tuple[Tensor, Tensor]) -> Tensor:
    """CoCa's image embedding as open_clip's ``encode_image`` gives it, without the tokens for captions."""
    return functional.normalize(out[0], dim=-1)


class Conch(nn.Module):
    """CONCH's image tower as its authors use it on slides: attention pooling, neither projected nor normalised.

    ViT-B/16 at 448 px; one learned query attends to class and patch tokens. Parts are named as in the checkpoint.
    """

    unused = ("proj_contrast", "attn_pool_caption.", "ln_caption.")  # what the checkpoint holds beside them

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
    module, report = model.from_pretrained(
        None,
        config=model.config_class(**entry.kwargs),
        # Older files list the positions 0, 1, …, which are no weights.
        state_dict={
            key: value.float().clone()
            for key, value in state.items()
            if not key.startswith(other) and not key.endswith(".position_ids")
        },
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    shapes = [f"{k} {tuple(found)}, needed {tuple(needed)}" for k, found, needed in report["mismatched_keys"]]
    require_fit(name, report["missing_keys"], report["unexpected_keys"], shapes)
    module.register_forward_hook(_image_embeds if entry.pooling == PROJECTED else _class_token)
    return module


def _image_embeds(module: nn.Module, _: Any, out: Any) -> Tensor:
    return out.image_embeds


def _class_token(module: nn.Module, _: Any, out: Any) -> Tensor:
    return out.last_hidden_state[:, 0]


def build_timm(arch: str, weights: str | Path | None, pretrained: bool, name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build any timm network with its weights; what fails for want of a file or of access fails before it is built."""
    import timm

    fetch = pretrained and weights is None
    repo, revision = _require_known(arch, fetch)
    state = None if weights is None else read_weights(weights)
    options = {"num_classes": 0, **_classes(kwargs)}
    try:
        if fetch and repo is not None and in_cache(repo, revision) is None:
            on_hub(repo, revision)
        module = timm.create_model(arch, pretrained=fetch, **options)
    except Exception as error:
        if not fetch or isinstance(error, (TypeError, AttributeError, AssertionError)):
            raise EncoderError(f"timm cannot build {arch!r} with {options}: {error}") from error
        instead = f"sg.get_encoder({arch!r}, weights=path)"
        raise EncoderError(no_access(name, page_of(arch), error, instead)) from error
    if state is not None:
        load_weights(module, state, arch)
    return module


def page_of(arch: str) -> str | None:
    """Page of the weights of a timm model."""
    import timm

    repo, _ = _on_hub(arch)
    return timm.get_pretrained_cfg(arch).origin_url if repo is None else f"https://huggingface.co/{repo}"


def _on_hub(arch: str) -> tuple[str | None, str | None]:
    """Repository and revision of a timm model's weights; ``None`` where they lie elsewhere, or nowhere."""
    import timm

    if arch.startswith(HUB):
        repo, _, revision = arch[7:].partition("@")
        return repo, revision or None
    return getattr(timm.get_pretrained_cfg(arch), "hf_hub_id", None), None


def _require_known(arch: str, fetch: bool) -> tuple[str | None, str | None]:
    """Check that timm knows a name, and has weights of it if they are asked for; where they lie on the hub."""
    import timm

    if arch.startswith(HUB):
        return _on_hub(arch)
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, sorted({*REGISTRY, *timm.list_models()}), n=5)
        raise EncoderError(
            f"No image encoder is called {arch!r}. Registered: {', '.join(REGISTRY)}; or any name of timm.list_models()"
            + (f", such as {', '.join(near)}." if near else ".")
        )
    base, _, tag = arch.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise EncoderError(f"timm has no weights {tag!r} of {base!r}. It has {', '.join(map(repr, tags)) or 'none'}.")
    if fetch and not tags:
        raise EncoderError(
            f"timm has no weights of {arch!r}. Give a checkpoint, weights=path, or take random weights: "
            f"ImageEncoder.from_timm({arch!r})."
        )
    return _on_hub(arch)


def _classes(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for timm with ``mlp_layer``, a class in ``timm.layers`` by name, looked up."""
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
