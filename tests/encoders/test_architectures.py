"""Registered encoders of their true shapes, against direct calls of the libraries that their authors use."""

import gc
import json
import logging
import shutil
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn.functional import normalize

from sigmma_sc.errors import EncoderError, MissingPackageError
from sigmma_sc.encoders import architectures
from sigmma_sc.encoders import encoder as encoders
from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.encoders.weights import fetch_weights, load_weights, read_weights

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


class TestFiles:
    def test_numpy_numbers_of_either_name(self, tmp_path):
        """numpy 2 moved its core, and with it the name that a checkpoint gives to a number."""
        numbers = {"lr": np.float64(0.5), "step": np.int64(7), "on": np.bool_(True), "half": np.float16(1)}
        torch.save({"optimizer": numbers, "state_dict": {"weight": torch.arange(3.0)}}, tmp_path / "new.pt")
        with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
            for item in new.namelist():
                old.writestr(item.replace("new/", "old/"), new.read(item).replace(b"numpy._core.", b"numpy.core."))
        for file in ("new.pt", "old.pt"):
            assert torch.equal(read_weights(tmp_path / file)["weight"], torch.arange(3.0))

    def test_files_execute_nothing(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "pwned"), "w"))

        for nest in ({"weight": Evil()}, {"state_dict": {"weight": torch.zeros(2)}, "optimizer": Evil()}):
            torch.save(nest, tmp_path / "w.pt")
            with pytest.raises(EncoderError, match="cannot be read"):
                read_weights(tmp_path / "w.pt")
        assert not (tmp_path / "pwned").exists()

    def test_before_zip(self, tmp_path):
        """Files of torch before 1.6, such as Lunit's release, are no archives."""
        torch.save({"weight": torch.arange(3.0)}, tmp_path / "w.torch", _use_new_zipfile_serialization=False)
        assert torch.equal(read_weights(tmp_path / "w.torch")["weight"], torch.arange(3.0))

    def test_folder(self, tmp_path):
        with pytest.raises(EncoderError, match=r"is no file, nor holds one of model.safetensors, pytorch_model.bin"):
            read_weights(tmp_path)
        torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
        assert read_weights(tmp_path)["weight"] == 0
        save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
        assert read_weights(str(tmp_path))["weight"] == 1

    @pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, {}, {"state_dict": {"weight": "no"}}])
    def test_no_state_dict(self, content, tmp_path):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(EncoderError, match="cannot be read"):
            read_weights(tmp_path / "w.pth")

    def test_weights_do_not_hang_on_the_file(self, tmp_path):
        torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "w.pth")
        module = nn.Linear(2, 2, device="meta")
        load_weights(module, read_weights(tmp_path / "w.pth"), "linear")
        torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / "w.pth")
        assert module.weight.sum() == 4
        assert module.weight.requires_grad


@pytest.mark.parametrize("name", ["phikon-v2", "clip", "plip", "conch", "omiclip"])
def test_missing_package(name, monkeypatch):
    monkeypatch.setattr("sigmma_sc._checks.find_spec", lambda module: None)
    monkeypatch.setattr(architectures, "fetch_weights", lambda name: pytest.fail("fetched what cannot be used"))
    with pytest.raises(MissingPackageError, match=r'pip install "sigmma-sc\[encoders\]"'):
        get_encoder(name)


class Hub(BaseHTTPRequestHandler):
    """The two answers of the hub that matter: what a repository holds, and its file, or that it is gated."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_HEAD(self):
        self.asked.append(f"{self.command} {self.path}")
        body, headers, status = b"", {"X-Repo-Commit": "0" * 40, "ETag": '"1"'}, 200
        repo = "/".join(self.path.removeprefix("/api/models").split("/")[1:3])
        if self.path.startswith("/api/models/"):
            body = json.dumps(
                {"id": repo, "gated": "manual", "siblings": [{"rfilename": "model.safetensors"}]}
            ).encode()
        elif repo in self.files:
            body = self.files[repo]
        else:
            status, headers = (
                403,
                {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {repo} is restricted"},
            )
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of our own on this machine, and an empty cache."""
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for key, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }.items():
        for module in ("constants", "file_download"):  # before 1.0 the latter had copies of its own
            monkeypatch.setattr(f"huggingface_hub.{module}.{key}", value, raising=False)
    yield server
    server.shutdown()
    server.server_close()


class TestHub:
    def test_gated_fails_before_compute(self, hub, monkeypatch):
        monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("built without weights"))
        with pytest.raises(EncoderError) as caught:
            get_encoder("virchow2")
        text = str(caught.value)
        assert "paige-ai/Virchow2 is restricted" in text
        assert "ask for access at https://huggingface.co/paige-ai/Virchow2, then log in" in text
        assert (
            "need no access: stain-stats, resnet50, kaiko-vits16, lunit-vits16, phikon-v2, clip, plip, or a timm"
            in text
        )

    def test_download_then_offline(self, hub, monkeypatch, caplog):
        monkeypatch.setattr(encoders, "_warned", set())
        entry = replace(REGISTRY["kaiko-vits16"], architecture="test_vit", dim=64, input_size=160)
        monkeypatch.setitem(REGISTRY, "kaiko-vits16", entry)
        model = scramble(timm.create_model("test_vit", dynamic_img_size=True))
        Hub.files["1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms"] = save(model.state_dict())
        with caplog.at_level(logging.WARNING, "sigmma_sc"):
            first = get_encoder("kaiko-vits16")
            assert any("resolve/main/model.safetensors" in line for line in Hub.asked)
            Hub.asked.clear()
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            again = ImageEncoder.from_spec(json.loads(json.dumps(first.spec)))
        assert not Hub.asked
        assert again.fingerprint() == first.fingerprint()
        assert len([r for r in caplog.records if "licence Kaiko non-commercial" in r.getMessage()]) == 1
        model.reset_classifier(0)
        with torch.no_grad():
            torch.testing.assert_close(again.encode(crops(160)), model(normalised(crops(160), entry.mean, entry.std)))

    def test_licences_are_shown_once(self, hub, monkeypatch, caplog, tmp_path):
        monkeypatch.setattr(encoders, "_warned", set())
        model = scramble(timm.create_model("test_vit", num_classes=1000))
        Hub.files["timm/test_vit.r160_in1k"] = save(model.state_dict())
        save_file(timm.create_model("resnet50").state_dict(), tmp_path / "resnet50.safetensors")
        for _ in range(2):
            get_encoder("test_vit")
            get_encoder("resnet50", weights=tmp_path / "resnet50.safetensors")
            get_encoder("resnet50.a1_in1k", weights=tmp_path / "resnet50.safetensors")  # a file of the user's own
            ImageEncoder.from_timm("test_vit2")
        shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert shown == [
            "Image encoder test_vit: licence apache-2.0, https://huggingface.co/timm/test_vit.r160_in1k",
            "Image encoder resnet50: licence BSD-3-Clause, https://huggingface.co/timm/resnet50.tv_in1k",
        ]

    def test_the_cache_is_found_under_a_name_in_other_case(self, hub, monkeypatch):
        """As the snippets of UNI's authors spell it."""
        from huggingface_hub import hf_hub_download

        Hub.files["MahmoodLab/uni"] = b"weights"
        hf_hub_download("MahmoodLab/uni", "pytorch_model.bin")
        Hub.asked.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert fetch_weights("uni", REGISTRY["uni"]).read_bytes() == b"weights"
        with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set"):
            fetch_weights("uni2-h", REGISTRY["uni2-h"])
        assert not Hub.asked

    def test_revisions(self, hub, monkeypatch):
        monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("built without weights"))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse_revision)
        with pytest.raises(
            EncoderError, match=r"cannot be fetched: foo/bar has no v2\. See https://huggingface\.co/foo/bar;"
        ):
            get_encoder("hf-hub:foo/bar@v2")


def refuse_revision(self, repo, revision, timeout):
    raise OSError(f"{repo} has no {revision}")
