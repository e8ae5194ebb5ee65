"""Text encoders of genes as a sentence: names in the order of their expression (Chen et al. 2025, OmiCLIP)."""

from typing import Any

import torch
from torch import Tensor, nn

from sigmma_sc._checks import require_choice, require_package
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.encoders.weights import fetch_weights, load_weights, read_weights, require_all_loaded

N_WORDS = 50
PRETRAINED = ("clip", "plip", "omiclip")
"""Registered encoders whose checkpoint has a text tower too."""


def ranked_genes(genes: Tensor, n_words: int = N_WORDS) -> tuple[Tensor, Tensor]:
    """Rank the genes of each tile ``(n, n_genes)`` by expression, highest first; ties in the order of the panel.

    Gives the indices of the first ``n_words`` genes, and whether each of them is expressed at all, ``(n, w)`` each.
    """
    values, order = genes.sort(dim=1, descending=True, stable=True)
    return order[:, :n_words], values[:, :n_words] > 0


class GeneSentenceTower(nn.Module):
    """A small transformer over the sentence, with a word for each gene of the panel, trained from scratch.

    It stands in for a pretrained text tower whose weights cannot be had, and for comparisons of methods alone. Width,
    depth and heads are our choice.
    """

    def __init__(self, n_genes: int, width: int = 128, depth: int = 2, heads: int = 4):
        super().__init__()
        self.width = width
        self.words = nn.Embedding(n_genes, width)
        self.places = nn.Parameter(0.01 * torch.randn(N_WORDS, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, genes: Tensor) -> Tensor:
        """Encode expression ``(n, n_genes)`` to ``(n, width)``; the sentence of a tile without counts is one word."""
        order, expressed = ranked_genes(genes)
        expressed = expressed.clone()
        expressed[:, 0] = True
        tokens = self.words(order) + self.places[: order.shape[1]]
        tokens = self.layers(tokens, src_key_padding_mask=~expressed)
        return (tokens * expressed[:, :, None]).sum(1) / expressed.sum(1, keepdim=True)


class PretrainedText(nn.Module):
    """A text tower of CLIP's kind on sentences of genes; ``module`` maps tokens ``(n, length)`` to ``(n, width)``."""

    def __init__(self, module: nn.Module, names: list[str], width: int, length: int = 77):
        import open_clip

        super().__init__()
        self.module = module
        self.names = names
        self.width = width
        self.tokenise = open_clip.SimpleTokenizer(context_length=length)  # CLIP's, which PLIP and OmiCLIP share

    def forward(self, genes: Tensor) -> Tensor:
        """Encode expression ``(n, n_genes)`` to ``(n, width)``."""
        return self.module(self.tokenise(self.sentences(genes)).to(genes.device))

    def sentences(self, genes: Tensor) -> list[str]:
        """Names of the most expressed genes of each tile, separated by blanks."""
        order, expressed = ranked_genes(genes)
        sentences = []
        for indices, shown in zip(order.cpu(), expressed.cpu(), strict=True):
            words = [self.names[index] for index in indices[shown].tolist()]
            sentences.append(" ".join(words))
        return sentences


def text_tower(name: str, weights: str | None, names: list[str]) -> PretrainedText:
    """Build the text tower of ``"clip"``, ``"plip"`` or ``"omiclip"`` for the genes ``names``, in order.

    ``weights`` is a local checkpoint of the whole model, file or folder; ``None`` takes it from the hub or its cache.
    """
    require_choice(name, PRETRAINED, "text")
    require_package("open_clip", "encoders")
    entry = REGISTRY[name]
    state = read_weights(fetch_weights(name, entry, "text_weights=path") if weights is None else weights)
    if entry.source == "transformers":
        require_package("transformers", "encoders")
        return PretrainedText(_of_transformers(name, state), names, 512)
    return PretrainedText(_of_open_clip(entry.architecture, name, state), names, 768, 76)


class _Embeds(nn.Module):
    """transformers' text tower, its output alone."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.model = tower

    def forward(self, tokens: Tensor) -> Tensor:
        # Padding is CLIP's end of text in transformers and zero in open_clip; the causal mask hides either.
        return self.model(tokens).text_embeds


def _of_transformers(name: str, state: dict[str, Tensor]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    own = {}
    for key, value in state.items():
        if key.startswith(("text_model.", "text_projection.")) and not key.endswith(".position_ids"):
            own[key] = value.float()
    loaded: Any = CLIPTextModelWithProjection.from_pretrained(
        None,
        config=CLIPTextConfig(projection_dim=512, eos_token_id=49407),
        state_dict=own,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model, report = loaded
    require_all_loaded(f"text tower of {name}", report, REGISTRY[name].page)
    return _Embeds(model)


def _of_open_clip(architecture: str, name: str, state: dict[str, Tensor]) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(architecture)
    module = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"}).text
    own = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    load_weights(module, own, f"text tower of {name}", page=REGISTRY[name].page)
    module.register_forward_hook(_latent)
    return module


def _latent(module: nn.Module, _: object, out: tuple[Tensor, Tensor]) -> Tensor:
    """CoCa's text embedding, without the tokens for captions."""
    return out[0]
