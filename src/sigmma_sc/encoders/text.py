"""Genes as a sentence: names in the order of their expression (Chen et al. 2025, OmiCLIP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigmma_sc._checks import require_choice, require_package
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.encoders.weights import fetch_weights, load_weights, read_weights, require_fit

N_WORDS = 50
PRETRAINED = ("clip", "plip", "omiclip")
"""Text towers whose weights are a checkpoint's."""


def ranked_genes(genes: Tensor, n_words: int = N_WORDS) -> tuple[Tensor, Tensor]:
    """The most expressed genes of each tile, most first.

    Parameters
    ----------
    genes
        Expression ``(n, n_genes)``.
    n_words
        Longest sentence.

    Returns
    -------
    order
        Genes ``(n, w)``; equal ones in the order of the panel.
    said
        Which of them are expressed at all, ``(n, w)``.
    """
    values, order = genes.sort(dim=1, descending=True, stable=True)
    return order[:, :n_words], values[:, :n_words] > 0


class GeneSentenceTower(nn.Module):
    """A small transformer over the sentence, with a word for each gene of the panel, trained from scratch.

    What a pretrained text tower would be where its weights cannot be had, and where methods are compared by themselves.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    width, depth, heads
        Of the transformer (our choices).
    """

    def __init__(self, n_genes: int, width: int = 128, depth: int = 2, heads: int = 4):
        super().__init__()
        self.width = width
        self.words = nn.Embedding(n_genes, width)
        self.places = nn.Parameter(0.01 * torch.randn(N_WORDS, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, genes: Tensor) -> Tensor:
        """Expression ``(n, n_genes)`` to ``(n, width)``; a tile without counts is told by a single word."""
        order, said = ranked_genes(genes)
        said = said.clone()
        said[:, 0] = True
        tokens = self.layers(self.words(order) + self.places[: order.shape[1]], src_key_padding_mask=~said)
        return (tokens * said[:, :, None]).sum(1) / said.sum(1, keepdim=True)


class PretrainedText(nn.Module):
    """A text tower of CLIP's kind on sentences of gene names.

    Parameters
    ----------
    module
        Maps tokens ``(n, length)`` to ``(n, width)``.
    names
        Genes of the panel, in order.
    width
        Of what it gives.
    length
        Of the sentences in tokens: longer ones are cut.
    """

    def __init__(self, module: nn.Module, names: list[str], width: int, length: int = 77):
        import open_clip

        super().__init__()
        self.module, self.names, self.width = module, names, width
        self.tokenise = open_clip.SimpleTokenizer(context_length=length)  # CLIP's, which PLIP and OmiCLIP share

    def forward(self, genes: Tensor) -> Tensor:
        """Expression ``(n, n_genes)`` to ``(n, width)``."""
        return self.module(self.tokenise(self.sentences(genes)).to(genes.device))

    def sentences(self, genes: Tensor) -> list[str]:
        """Names of the most expressed genes of each tile, separated by blanks."""
        order, said = (part.tolist() for part in ranked_genes(genes))
        return [
            " ".join(self.names[g] for g, s in zip(o, k, strict=True) if s) for o, k in zip(order, said, strict=True)
        ]


def text_tower(name: str, weights: str | None, names: list[str]) -> PretrainedText:
    """Text tower of a registered CLIP, with its checkpoint's weights.

    Parameters
    ----------
    name
        ``"clip"``, ``"plip"`` or ``"omiclip"``.
    weights
        Local checkpoint of the whole model, file or folder; ``None`` fetches it from the hub, or takes it from its cache.
    names
        Genes of the panel.

    Raises
    ------
    EncoderError
        The weights cannot be had or do not fit.
    MissingPackageError
        open_clip or transformers is not installed.
    """
    require_choice(name, PRETRAINED, "text")
    require_package("open_clip", "encoders")
    state = read_weights(fetch_weights(name, "text_weights=path") if weights is None else weights)
    if REGISTRY[name].source == "transformers":
        require_package("transformers", "encoders")
        return PretrainedText(_of_transformers(name, state), names, 512)
    return PretrainedText(_of_open_clip(REGISTRY[name].architecture, name, state), names, 768, 76)


class _Embeds(nn.Module):
    """transformers' text tower, its output alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        # Padding is CLIP's end of text in transformers and zero in open_clip; the causal mask hides either.
        return self.model(tokens).text_embeds


def _of_transformers(name: str, state: dict[str, Tensor]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    own = ("text_model.", "text_projection.")
    model, report = CLIPTextModelWithProjection.from_pretrained(
        None,
        config=CLIPTextConfig(projection_dim=512, eos_token_id=49407),
        state_dict={k: v.float() for k, v in state.items() if k.startswith(own) and not k.endswith(".position_ids")},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    shapes = [f"{k} {tuple(found)}, needed {tuple(needed)}" for k, found, needed in report["mismatched_keys"]]
    require_fit(f"text tower of {name}", report["missing_keys"], report["unexpected_keys"], shapes)
    return _Embeds(model)


def _of_open_clip(architecture: str, name: str, state: dict[str, Tensor]) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(architecture)
    module = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"}).text
    own = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    load_weights(module, own, f"text tower of {name}")
    module.register_forward_hook(_latent)
    return module


def _latent(module: nn.Module, _: object, out: tuple[Tensor, Tensor]) -> Tensor:
    """CoCa's text embedding, without the tokens for captions."""
    return out[0]
