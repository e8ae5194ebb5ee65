"""Image encoders known by name: sizes, normalisation and terms as their authors state them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Three = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
PERMISSIVE = {"Apache-2.0", "BSD-3-Clause", "MIT"}


@dataclass(frozen=True)
class Entry:
    """A registered encoder; sizes, normalisation and arguments as the model's authors state them."""

    architecture: str
    source: str
    dim: int
    input_size: int
    mean: Three
    std: Three
    licence: str
    gated: bool
    page: str
    citation: str
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)


REGISTRY = {
    "stain-stats": Entry(
        "StainStatistics", "sigmma-sc", 96, 112, (0, 0, 0), (1, 1, 1), "BSD-3-Clause", False,
        "embedded, no download", "Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291",
    ),
    "resnet50": Entry(
        "resnet50.tv_in1k", "timm", 2048, 224, IMAGENET_MEAN, IMAGENET_STD, "BSD-3-Clause", False,
        "https://huggingface.co/timm/resnet50.tv_in1k", "He et al. 2016, CVPR",
    ),
    "kaiko-vits16": Entry(
        "vit_small_patch16_224", "timm", 384, 224, HALF, HALF, "Kaiko non-commercial", False,
        "https://huggingface.co/1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "kaiko.ai et al. 2024, arXiv:2404.15217", {"dynamic_img_size": True},
    ),
    "uni": Entry(
        "vit_large_patch16_224", "timm", 1024, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Entry(
        "vit_giant_patch14_224", "timm", 1536, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-NC-ND-4.0", True,
        "https://huggingface.co/MahmoodLab/UNI2-h", "Chen et al. 2024, Nat Med 30:850",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "silu",
         "reg_tokens": 8, "dynamic_img_size": True},
    ),
    "h-optimus-0": Entry(
        "vit_giant_patch14_reg4_dinov2", "timm", 1536, 224, (0.707223, 0.578729, 0.703617),
        (0.211883, 0.230117, 0.177517), "Apache-2.0", True, "https://huggingface.co/bioptimus/H-optimus-0",
        "Saillard et al. 2024, github.com/bioptimus/releases",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    ),
}  # fmt: skip


def list_encoders() -> pd.DataFrame:
    """Registered encoders with architecture, library, dimension, input, licence, gating, page and citation."""
    import pandas as pd

    rows = {name: {k: v for k, v in asdict(entry).items() if k != "kwargs"} for name, entry in REGISTRY.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
