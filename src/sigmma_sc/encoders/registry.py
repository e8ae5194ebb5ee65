"""Image encoders known by name: sizes, normalisation, pooling and terms as their authors state them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Three = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BIOPTIMUS_MEAN, BIOPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
LUNIT_MEAN, LUNIT_STD = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
HALF = (0.5, 0.5, 0.5)
CLASS, CLASS_AND_PATCHES, PROJECTED = "class token", "class token, mean of patch tokens", "class token, projected"


@dataclass(frozen=True)
class Entry:
    """A registered encoder; sizes, normalisation, pooling and arguments as the model's authors state them.

    ``architecture`` and ``kwargs`` are what ``source``, the library, builds the network from.
    """

    architecture: str
    source: str
    dim: int
    input_size: int
    mean: Three
    std: Three
    pooling: str
    licence: str
    gated: bool
    page: str
    citation: str
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)


REGISTRY = {
    "stain-stats": Entry(
        "StainStatistics", "sigmma-sc", 96, 112, (0, 0, 0), (1, 1, 1), "statistics of the crop", "BSD-3-Clause", False,
        "embedded, no download", "Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291",
    ),
    "resnet50": Entry(
        "resnet50.tv_in1k", "timm", 2048, 224, IMAGENET_MEAN, IMAGENET_STD, "mean of the feature map", "BSD-3-Clause", False,
        "https://huggingface.co/timm/resnet50.tv_in1k", "He et al. 2016, CVPR",
    ),
    "kaiko-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, HALF, HALF, CLASS, "Kaiko non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "kaiko.ai et al. 2024, arXiv:2404.15217", {"dynamic_img_size": True},
    ),
    "lunit-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, LUNIT_MEAN, LUNIT_STD, CLASS, "Lunit non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.lunit_dino", "Kang et al. 2023, CVPR, arXiv:2212.04690",
    ),
    "uni": Entry(
        "vit_large_patch16_224", "timm", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Entry(
        "vit_giant_patch14_224", "timm", 1536, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI2-h", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "silu",
         "reg_tokens": 8, "dynamic_img_size": True},
    ),
    "h-optimus-0": Entry(
        "vit_giant_patch14_reg4_dinov2", "timm", 1536, 224, BIOPTIMUS_MEAN, BIOPTIMUS_STD, CLASS, "Apache-2.0", True,
        "https://huggingface.co/bioptimus/H-optimus-0", "Saillard et al. 2024, github.com/bioptimus/releases",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
    # 4 x 768 hidden features, two thirds of them behind each half of the gate.
    "h0-mini": Entry(
        "vit_base_patch14_reg4_dinov2", "timm", 1536, 224, BIOPTIMUS_MEAN, BIOPTIMUS_STD, CLASS_AND_PATCHES,
        "CC-BY-NC-ND-4.0", True, "https://huggingface.co/bioptimus/H0-mini",
        "Filiot et al. 2025, MICCAI, arXiv:2501.16239",
        {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "mlp_layer": "SwiGLUPacked",
         "act_layer": "silu", "global_pool": ""},
    ),
    "virchow2": Entry(
        "vit_huge_patch14_224", "timm", 2560, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS_AND_PATCHES,
        "CC-BY-NC-ND-4.0", True, "https://huggingface.co/paige-ai/Virchow2",
        "Zimmermann et al. 2024, arXiv:2408.00738",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "mlp_layer": "SwiGLUPacked",
         "act_layer": "silu", "global_pool": "", "dynamic_img_size": True},
    ),
    "phikon-v2": Entry(
        "Dinov2Model", "transformers", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, CLASS, "Owkin non-commercial", False,
        "https://huggingface.co/owkin/phikon-v2", "Filiot et al. 2024, arXiv:2409.09173",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "image_size": 224},
    ),
    "conch": Entry(
        "conch_ViT-B-16", "timm + open_clip", 512, 448, CLIP_MEAN, CLIP_STD, "attention", "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/CONCH", "Lu et al. 2024, Nat Med 30:863",
    ),
    "clip": Entry(
        "CLIPVisionModelWithProjection", "transformers", 512, 224, CLIP_MEAN, CLIP_STD, PROJECTED, "MIT", False,
        "https://huggingface.co/openai/clip-vit-base-patch32", "Radford et al. 2021, ICML, arXiv:2103.00020",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "patch_size": 32, "image_size": 224, "projection_dim": 512},
    ),
    "plip": Entry(
        "CLIPVisionModelWithProjection", "transformers", 512, 224, CLIP_MEAN, CLIP_STD, PROJECTED,
        "none stated, non-commercial intended", False, "https://huggingface.co/vinid/plip",
        "Huang et al. 2023, Nat Med 29:2307",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "patch_size": 32, "image_size": 224, "projection_dim": 512},
    ),
    "omiclip": Entry(
        "coca_ViT-L-14", "open_clip", 768, 224, CLIP_MEAN, CLIP_STD, "attention, projected, unit length",
        "BSD-3-Clause", True, "https://huggingface.co/WangGuangyuLab/Loki", "Chen et al. 2025, Nat Methods 22:1568",
    ),
}  # fmt: skip


def list_encoders() -> pd.DataFrame:
    """Registered encoders with architecture, library, dimension, input, pooling, licence, gating, page and citation.

    Examples
    --------
    >>> encoders = sg.list_encoders()
    >>> encoders.loc["uni", ["dim", "licence", "gated"]].to_dict()
    {'dim': 1024, 'licence': 'CC-BY-NC-ND-4.0', 'gated': True}
    >>> encoders.index[~encoders["gated"]].tolist()
    ['stain-stats', 'resnet50', 'kaiko-vits16', 'lunit-vits16', 'phikon-v2', 'clip', 'plip']
    """
    import pandas as pd

    rows = {name: {k: v for k, v in asdict(entry).items() if k != "kwargs"} for name, entry in REGISTRY.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
