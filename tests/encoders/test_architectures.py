"""Registered encoders of their true shapes, against direct calls of the libraries that their authors use."""

import gc
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize

from sigmma_sc.encoders import architectures
from sigmma_sc.encoders.encoder import get_encoder
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.errors import EncoderError, MissingPackageError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BIOPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
LUNIT = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
# Name: architecture, arguments of timm and normalisation as on the pages of the models, and the file found there.
TIMM = {
    "resnet50": ("resnet50", {"num_classes": 1000}, IMAGENET, "model.safetensors"),
    "kaiko-vits16": ("vit_small_patch16_224", {}, ((0.5,) * 3, (0.5,) * 3), "model.safetensors"),
    "lunit-vits16": ("vit_small_patch16_224", {}, LUNIT, "model.safetensors"),
    "h0-mini": (
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "mlp_ratio": 5.33334, "global_pool": "", **SWIGLU},
        BIOPTIMUS,
        "pytorch_model.bin",
    ),
    "uni": ("vit_large_patch16_224", {"init_values": 1e-5}, IMAGENET, "pytorch_model.bin"),
    "virchow2": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU},
        IMAGENET,
        "pytorch_model.bin",
    ),
    "uni2-h": (
        "vit_giant_patch14_224",
        {"depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 5.33334,
         "no_embed_class": True, "reg_tokens": 8, **SWIGLU},
        IMAGENET,
        "pytorch_model.bin",
    ),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}, BIOPTIMUS, "pytorch_model.bin"),
}  # fmt: skip
SLOW = ("uni", "virchow2", "uni2-h", "h-optimus-0")


def crops(side, n=2):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(images, mean, std):
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def scramble(module):
    """Weights that let every part count: libraries start layer scales near 0 and biases at 0."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.named_parameters():
        bound = 0.5 if value.ndim == 3 else 0.2 if value.ndim < 2 else (3 / value[0].numel()) ** 0.5
        value.uniform_(-bound, bound, generator=generator)
        if value.ndim == 1 and name.endswith("weight"):
            value += 1
    for name, value in module.named_buffers():
        if "running_mean" in name:
            value.uniform_(-0.2, 0.2, generator=generator)
        elif "running_var" in name:
            value.uniform_(0.5, 2, generator=generator)
    return module.eval()


@pytest.fixture
def folder(tmp_path):
    """Where a checkpoint of gigabytes may lie for the time of a test."""
    (tmp_path / "checkpoint").mkdir()
    yield tmp_path / "checkpoint"
    shutil.rmtree(tmp_path / "checkpoint")
    gc.collect()


def same(name, weights, images, expected):
    """What the registered encoder makes of the crops is what its library makes of them."""
    encoder = get_encoder(name, weights=weights)
    found = encoder.encode(images)
    assert found.shape == (len(images), REGISTRY[name].dim)
    assert (found[0] - found[1]).abs().max() > 1e-2 * found.abs().max()
    torch.testing.assert_close(found, expected)
    assert all(part.dtype == torch.float32 for part in encoder.module.parameters())
    return encoder


class TestTimm:
    @pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TIMM])
    @torch.no_grad()
    def test_equals_timm(self, name, folder):
        arch, kwargs, (mean, std), file = TIMM[name]
        with torch.device("meta"):
            model = timm.create_model(arch, **{"num_classes": 0, **kwargs})
        model = scramble(model.to_empty(device="cpu"))
        (save_file if file.endswith("safetensors") else torch.save)(model.state_dict(), folder / file)
        if "fc.weight" in model.state_dict():
            model.reset_classifier(0)
        expected = model(normalised(crops(224), mean, std))
        if name in ("virchow2", "h0-mini"):  # 1 class token, 4 register tokens, 256 patch tokens
            assert expected.shape[1] == 261
            expected = torch.cat([expected[:, 0], expected[:, 5:].mean(1)], dim=-1)
        del model
        encoder = same(name, folder / file if file.endswith("bin") else folder, crops(224), expected)
        if "vit" in arch:
            assert isinstance(encoder.module, timm.models.VisionTransformer)
            assert len(encoder.module.blocks) in (12, 24, 32, 40)

    def test_half_precision_file_gives_single_precision_weights(self, folder):
        state = timm.create_model("vit_small_patch16_224", num_classes=0).half().state_dict()
        save_file(state, folder / "model.safetensors")
        encoder = get_encoder("lunit-vits16", weights=folder)
        assert torch.equal(encoder.module.state_dict()["norm.weight"], state["norm.weight"].float())
        assert next(encoder.module.parameters()).dtype == torch.float32

    def test_gradient_reaches_every_token(self, folder, monkeypatch):
        entry = REGISTRY["h0-mini"]
        monkeypatch.setitem(REGISTRY, "h0-mini", replace(entry, dim=192, kwargs={**entry.kwargs, "embed_dim": 96, "num_heads": 4, "depth": 2}))  # fmt: skip
        with torch.device("meta"):
            small = architectures._of_timm(REGISTRY["h0-mini"])
        torch.save(scramble(small.to_empty(device="cpu")).state_dict(), folder / "small.pth")
        encoder = get_encoder("h0-mini", weights=folder / "small.pth")
        encoder.features(crops(224)).square().sum().backward()
        assert all(part.grad.abs().sum() > 0 for part in encoder.module.parameters())

    @pytest.mark.parametrize("name", [n for n, entry in REGISTRY.items() if "timm" in entry.source])
    def test_layout(self, name):
        """On the meta device: every tensor comes from the file, and the output has the dimension."""
        if "open_clip" in REGISTRY[name].source:
            pytest.importorskip("open_clip", reason="the extra 'encoders' is not installed")
        entry = REGISTRY[name]
        with torch.device("meta"):
            module = architectures._NETWORKS[entry.source](entry)
            assert module(torch.empty(2, 3, entry.input_size, entry.input_size)).shape == (2, entry.dim)
        assert {key for key, _ in module.named_buffers()} <= module.state_dict().keys()
        assert not any(key.startswith(("head.", "fc.")) for key in module.state_dict())

    @pytest.mark.parametrize(
        ("name", "shapes"),
        [
            ("uni", {"pos_embed": (1, 197, 1024), "patch_embed.proj.weight": (1024, 3, 16, 16),
                     "blocks.23.ls2.gamma": (1024,), "blocks.0.mlp.fc1.weight": (4096, 1024)}),
            ("uni2-h", {"pos_embed": (1, 256, 1536), "reg_token": (1, 8, 1536), "blocks.23.mlp.fc1.weight": (8192, 1536),
                        "blocks.0.mlp.fc2.weight": (1536, 4096), "patch_embed.proj.weight": (1536, 3, 14, 14)}),
            ("h-optimus-0", {"pos_embed": (1, 256, 1536), "reg_token": (1, 4, 1536),
                             "blocks.39.mlp.fc1.weight": (8192, 1536), "blocks.39.ls1.gamma": (1536,)}),
            ("h0-mini", {"pos_embed": (1, 256, 768), "reg_token": (1, 4, 768), "blocks.11.mlp.fc1.weight": (4096, 768),
                         "blocks.11.mlp.fc2.weight": (768, 2048), "blocks.11.ls1.gamma": (768,)}),
            ("virchow2", {"pos_embed": (1, 261, 1280), "reg_token": (1, 4, 1280), "blocks.31.mlp.fc1.weight": (6832, 1280),
                          "blocks.31.mlp.fc2.weight": (1280, 3416), "blocks.31.ls1.gamma": (1280,)}),
            ("kaiko-vits16", {"pos_embed": (1, 197, 384), "blocks.11.attn.qkv.weight": (1152, 384)}),
            ("lunit-vits16", {"pos_embed": (1, 197, 384), "blocks.11.attn.qkv.weight": (1152, 384)}),
        ],
    )  # fmt: skip
    def test_published_shapes(self, name, shapes):
        with torch.device("meta"):
            state = architectures._of_timm(REGISTRY[name]).state_dict()
        assert {key: tuple(state[key].shape) for key in shapes} == shapes

    # Millions of parameters as rendeirolab/lazyslide-models counted them in the authors' checkpoints.
    @pytest.mark.parametrize(("name", "millions"), [("h0-mini", 85.7), ("virchow2", 631.2)])
    def test_published_size(self, name, millions):
        with torch.device("meta"):
            module = architectures._of_timm(REGISTRY[name])
        assert sum(part.numel() for part in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


class TestTransformers:
    @pytest.fixture
    def transformers(self):
        return pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")

    @pytest.mark.parametrize("name", ["clip", "plip"])
    @torch.no_grad()
    def test_clip(self, name, transformers, folder):
        text = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
        model = scramble(transformers.CLIPModel(transformers.CLIPConfig(text_config=text)))
        state = model.state_dict() | {f"{part}_model.embeddings.position_ids": torch.arange(n)[None] for part, n in (("text", 77), ("vision", 50))}  # fmt: skip
        torch.save(state, folder / "pytorch_model.bin")
        images = crops(224)
        pixels = normalised(images, *CLIP)
        processor = transformers.CLIPImageProcessor()
        torch.testing.assert_close(processor(images=list(images), return_tensors="pt")["pixel_values"], pixels, atol=1e-3, rtol=0)  # fmt: skip
        expected = model.get_image_features(pixel_values=pixels)
        same(name, folder, images, getattr(expected, "pooler_output", expected))

    @pytest.mark.slow
    @torch.no_grad()
    def test_phikon(self, transformers, folder):
        config = transformers.Dinov2Config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16, image_size=224
        )
        model = scramble(transformers.Dinov2Model(config))
        assert sum(part.numel() for part in model.parameters()) / 1e6 == pytest.approx(303.4, abs=0.06)
        model.save_pretrained(folder)
        # The name that parameters have in files, and had in every version until 5.
        assert "encoder.layer.23.attention.attention.query.weight" in load_file(folder / "model.safetensors")
        expected = model(pixel_values=normalised(crops(224), *IMAGENET)).last_hidden_state[:, 0]
        same("phikon-v2", folder / "model.safetensors", crops(224), expected)

    def test_misfit_names_the_keys(self, transformers, folder):
        state = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig()).state_dict()
        state["visual_projection.weight"] = torch.zeros(7, 768)
        state["surplus.weight"] = state.pop("vision_model.post_layernorm.weight")
        torch.save(state, folder / "w.bin")
        with pytest.raises(EncoderError) as caught:
            get_encoder("clip", weights=folder / "w.bin")
        text = str(caught.value)
        assert "do not fit 'clip'" in text
        assert "1 missing: vision_model.post_layernorm.weight" in text
        assert "1 unexpected: surplus.weight" in text
        assert "1 of another shape: visual_projection.weight (7, 768), needed (512, 768)" in text
        assert "https://huggingface.co/openai/clip-vit-base-patch32" in text


class TestOpenClip:
    @pytest.fixture
    def open_clip(self):
        return pytest.importorskip("open_clip", reason="the extra 'encoders' is not installed")

    @pytest.mark.parametrize("depth", [2, pytest.param(12, marks=pytest.mark.slow)])
    @torch.no_grad()
    def test_conch(self, depth, open_clip, folder, monkeypatch):
        """Against torch's attention over the tokens of timm, as mahmoodlab/CONCH puts them together."""
        if depth != 12:
            monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=depth))
        trunk = timm.models.VisionTransformer(448, 16, embed_dim=768, depth=depth, num_heads=12, num_classes=0)
        parts = nn.ModuleDict(
            {
                "trunk": trunk,
                "attn": nn.MultiheadAttention(512, 8, kdim=768, vdim=768),
                "ln_q": nn.LayerNorm(512),
                "ln_k": nn.LayerNorm(768),
                "ln": nn.LayerNorm(512),
            }
        )
        parts.query = nn.Parameter(torch.zeros(1, 512))
        scramble(parts)
        names = {"trunk": "trunk", "ln": "ln_contrast"} | {k: f"attn_pool_contrast.{k}" for k in ("attn", "ln_q", "ln_k", "query")}  # fmt: skip
        state = {}
        for key, value in parts.state_dict().items():
            first, _, rest = key.partition(".")
            state[f"visual.{names[first]}{'.' * bool(rest)}{rest}"] = value
        beside = ("visual.proj_contrast", "visual.attn_pool_caption.query", "visual.ln_caption.bias", "text.cls_emb", "logit_scale")  # fmt: skip
        torch.save(state | dict.fromkeys(beside, torch.zeros(2)), folder / "pytorch_model.bin")
        tokens = parts["ln_k"](trunk.forward_features(normalised(crops(448), *CLIP))).transpose(0, 1)
        query = parts["ln_q"](parts.query)[:, None].expand(-1, 2, -1)
        expected = parts["ln"](parts["attn"](query, tokens, tokens, need_weights=False)[0][0])
        same("conch", folder, crops(448), expected)
        del state["visual.ln_contrast.bias"]
        torch.save(state, folder / "pytorch_model.bin")
        with pytest.raises(EncoderError, match=r"do not fit 'conch' \(1 missing: ln_contrast.bias\)"):
            get_encoder("conch", weights=folder)

    @pytest.mark.slow
    @torch.no_grad()
    def test_omiclip(self, open_clip, folder):
        """A checkpoint of open_clip's training loop, which keeps more beside the weights, read by open_clip itself."""
        from PIL import Image

        config = open_clip.get_model_config("coca_ViT-L-14")
        config.pop("custom_text")
        with torch.device("meta"):
            whole = open_clip.CoCa(**config)
        assert sum(part.numel() for part in whole.parameters()) / 1e6 == pytest.approx(638.5, abs=0.06)
        whole = scramble(whole.to_empty(device="cpu"))
        state = {f"module.{key}": value for key, value in whole.state_dict().items()}
        saved = {"epoch": 10, "name": "run", "state_dict": state, "optimizer": {"lr": np.float64(1e-4)}}
        torch.save(saved, folder / "checkpoint.pt")
        del whole, state, saved
        gc.collect()
        model, transform = open_clip.create_model_from_pretrained(
            "coca_ViT-L-14", pretrained=str(folder / "checkpoint.pt"), weights_only=False
        )
        images = crops(224)
        pixels = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
        expected = model.eval().encode_image(pixels)
        torch.testing.assert_close(expected.norm(dim=1), torch.ones(2))
        del model
        gc.collect()
        same("omiclip", folder, images, expected)

    @torch.no_grad()
    def test_small_coca(self, open_clip, folder, monkeypatch):
        """The way of a CoCa checkpoint with a small network."""
        config = open_clip.get_model_config("coca_ViT-B-32")
        config["vision_cfg"] |= {"layers": 2, "width": 128}
        config["embed_dim"] = 64
        monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(config))
        monkeypatch.setitem(REGISTRY, "omiclip", replace(REGISTRY["omiclip"], dim=64))
        whole = scramble(open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"}))
        state = {f"module.{key}": value for key, value in whole.state_dict().items()}
        torch.save({"epoch": np.int64(3), "state_dict": state}, folder / "checkpoint.pt")
        expected = whole.encode_image(normalised(crops(224), *CLIP), normalize=False)
        same("omiclip", folder, crops(224), normalize(expected, dim=-1))


@pytest.mark.parametrize("name", ["phikon-v2", "clip", "plip", "conch", "omiclip"])
def test_missing_package(name, monkeypatch):
    monkeypatch.setattr("sigmma_sc._checks.find_spec", lambda module: None)
    monkeypatch.setattr(architectures, "fetch_weights", lambda name: pytest.fail("fetched what cannot be used"))
    with pytest.raises(MissingPackageError, match=r'pip install "sigmma-sc\[encoders\]"'):
        get_encoder(name)
