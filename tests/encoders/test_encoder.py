import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sigmma_sc.encoders import encoder as encoders
from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.errors import EncoderError, SetupError

WEIGHTS = Path(os.environ.get("SIGMMA_WEIGHTS", Path(__file__).parents[3] / "shared" / "weights"))


def crops(side, n=3, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_hand(module, images, mean, std):
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return module.eval()((images.float() / 255 - mean) / std)


class Mean(nn.Module):
    """Mean colour, times a weight: the normalised value of a flat crop can be read off."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x.mean((2, 3)) * self.scale)


@pytest.fixture
def resnet():
    """Random weights with running statistics that are not the initial ones, and a classifier, as files have it."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False, num_classes=5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


class TestImageEncoder:
    def test_normalises_by_hand(self):
        encoder = ImageEncoder(Mean(), "mean", 8, mean=(0.5, 0.25, 0), std=(0.5, 0.25, 2))
        flat = torch.tensor([255, 0, 51], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
        assert torch.allclose(encoder.encode(flat), torch.tensor([[1.0, -1.0, 0.1]]))
        assert (encoder.dim, encoder.mean, encoder.std) == (3, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))

    def test_encode_is_eval_without_gradient_and_gives_modes_back(self):
        module = nn.Sequential(Mean(), nn.BatchNorm1d(3))
        encoder = ImageEncoder(module, "mean", 8)
        encoder.train()
        module[1].eval()
        before = module[1].running_mean.clone()
        out = encoder(crops(8))
        assert not out.requires_grad
        assert torch.equal(out, encoder.encode(crops(8)))
        assert torch.equal(module[1].running_mean, before)
        assert module[0].drop.training
        assert not module[1].training

    def test_features_carry_gradient(self):
        encoder = ImageEncoder(Mean(), "mean", 8).eval()
        encoder.features(crops(8)).sum().backward()
        assert encoder.module.scale.grad.abs().sum() > 0

    def test_callable(self):
        encoder = ImageEncoder(
            lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), "colours", 8, (0, 0, 0), (1, 1, 1)
        )
        assert encoder.dim == 6
        assert torch.allclose(encoder.encode(crops(8))[:, 3:], crops(8).amax((2, 3)) / 255)

    def test_no_crops(self):
        out = ImageEncoder(Mean(), "mean", 8).encode(crops(8, 0))
        assert out.shape == (0, 3)

    def test_half_precision_output_becomes_float32(self):
        assert ImageEncoder(lambda x: x.mean((2, 3)).half(), "h", 8).encode(crops(8)).dtype == torch.float32

    @pytest.mark.parametrize(
        ("module", "shown"),
        [
            (lambda x: x, r"\(2, 3, 8, 8\)"),
            (lambda x: x.mean(), r"\(\)"),
            (lambda x: (x.mean((2, 3)),), "tuple"),
            (lambda x: x.mean((2, 3))[:1], r"\(1, 3\)"),
        ],
    )
    def test_bad_output_names_the_shape(self, module, shown):
        with pytest.raises(EncoderError, match=f"'odd' maps .* to {shown}"):
            ImageEncoder(module, "odd", 8)

    def test_output_must_be_finite(self):
        with pytest.raises(EncoderError, match="NaN"):
            ImageEncoder(lambda x: x.mean((2, 3)) / 0, "odd", 8)

    def test_given_dim_is_checked(self):
        with pytest.raises(EncoderError, match=r"\(3, 3\); \(3, 4\) is needed"):
            ImageEncoder(Mean(), "mean", 8, dim=4).encode(crops(8))

    @pytest.mark.parametrize("bad", [crops(9), crops(8).float(), crops(8)[0]])
    def test_bad_crops(self, bad):
        with pytest.raises(EncoderError, match=r"takes uint8 crops \(B, 3, 8, 8\)"):
            ImageEncoder(Mean(), "mean", 8).encode(bad)

    def test_bad_arguments(self):
        with pytest.raises(SetupError, match="input_size=0"):
            ImageEncoder(Mean(), "mean", 0)
        with pytest.raises(EncoderError, match="std"):
            ImageEncoder(Mean(), "mean", 8, std=(1, 0, 1))

    def test_fingerprint(self):
        encoder = ImageEncoder(nn.Sequential(Mean(), nn.BatchNorm1d(3)), "mean", 8)
        seen = {encoder.fingerprint()}
        assert ImageEncoder(nn.Sequential(Mean(), nn.BatchNorm1d(3)), "mean", 8).fingerprint() in seen
        with torch.no_grad():
            encoder.module[0].scale[1] += 1e-3
        seen.add(encoder.fingerprint())
        encoder.module[1].running_mean[0] = 1
        seen.add(encoder.fingerprint())
        for change in ({"name": "other"}, {"input_size": 16}, {"mean": (0, 0, 0)}, {"std": (1, 1, 1)}):
            options = {"name": "mean", "input_size": 8, **change}
            seen.add(ImageEncoder(nn.Sequential(Mean(), nn.BatchNorm1d(3)), **options).fingerprint())
        assert len(seen) == 7

    def test_bad_normalisation(self):
        for mean in (0.5, (0.5, 0.5), ("a", 0, 0), None):
            with pytest.raises(EncoderError, match=r"mean=.* must be three numbers each"):
                ImageEncoder(Mean(), "mean", 8, mean=mean)
        assert ImageEncoder(Mean(), "mean", 8, mean=np.array([0.5, 0.25, 0])).mean == (0.5, 0.25, 0.0)

    def test_a_network_that_fails_is_named(self):
        with pytest.raises(EncoderError, match=r"'half' fails on crops of 8 px.*torch.float16.*pass module\.float\(\)"):
            ImageEncoder(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).half(), "half", 8)
        with pytest.raises(EncoderError, match=r"'small' fails on crops of 4 px, RuntimeError.*Check input_size=4"):
            ImageEncoder(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "small", 4)

    def test_own_module_has_no_spec(self):
        assert ImageEncoder(Mean(), "mean", 8).spec is None


class TestFromTimm:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_equals_timm_by_hand(self, resnet, tmp_path, suffix):
        path = tmp_path / f"weights{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(resnet.state_dict(), path)
        encoder = ImageEncoder.from_timm("resnet10t", path, input_size=64)
        resnet.reset_classifier(0)
        config = timm.data.resolve_model_data_config(resnet)
        assert (encoder.mean, encoder.std, encoder.dim) == (config["mean"], config["std"], 512)
        expected = by_hand(resnet, crops(64), config["mean"], config["std"])
        torch.testing.assert_close(encoder.encode(crops(64)), expected)

    def test_nested_and_prefixed(self, resnet, tmp_path):
        state = {f"module.{k}": v for k, v in resnet.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": {"model": state}}, tmp_path / "w.pth")
        torch.save(resnet.state_dict(), tmp_path / "plain.pth")
        one, two = (ImageEncoder.from_timm("resnet10t", tmp_path / f"{n}.pth", input_size=64) for n in ("w", "plain"))
        assert one.fingerprint() == two.fingerprint()

    @pytest.mark.parametrize("arch", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
    def test_drops_any_classifier(self, arch, tmp_path):
        whole = timm.create_model(arch, pretrained=False)
        save_file(whole.state_dict(), tmp_path / "w.safetensors")
        encoder = ImageEncoder.from_timm(arch, tmp_path / "w.safetensors")
        assert encoder.input_size == whole.pretrained_cfg["input_size"][-1]
        whole.reset_classifier(0)
        expected = by_hand(whole, crops(encoder.input_size), encoder.mean, encoder.std)
        torch.testing.assert_close(encoder.encode(crops(encoder.input_size)), expected)

    def test_img_size_sets_the_input_size(self):
        assert ImageEncoder.from_timm("test_vit", img_size=96).input_size == 96

    def test_wrong_state_dict_names_the_keys(self, resnet, tmp_path):
        state = resnet.state_dict()
        state["surplus.weight"] = torch.zeros(2)
        del state["layer1.0.bn1.bias"]
        state["bn1.weight"] = torch.zeros(7)
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(EncoderError, match=r"'resnet10t'") as caught:
            ImageEncoder.from_timm("resnet10t", tmp_path / "w.pth")
        text = str(caught.value)
        assert "1 missing: layer1.0.bn1.bias" in text
        assert "1 unexpected: surplus.weight" in text
        assert "1 of another shape: bn1.weight (7,), needed (64,)" in text
        assert "fc." not in text

    def test_another_architecture(self, resnet, tmp_path):
        torch.save(resnet.state_dict(), tmp_path / "w.pth")
        with pytest.raises(EncoderError, match=r"do not fit 'test_vit' \(\d+ missing: .*; \d+ unexpected: .*img_size"):
            ImageEncoder.from_timm("test_vit", tmp_path / "w.pth")

    def test_unreadable_files(self, tmp_path):
        with pytest.raises(EncoderError, match="is no file"):
            ImageEncoder.from_timm("resnet10t", tmp_path / "none.pth")
        torch.save(Mean(), tmp_path / "pickled.pth")
        with pytest.raises(EncoderError, match="cannot be read"):
            ImageEncoder.from_timm("resnet10t", tmp_path / "pickled.pth")
        (tmp_path / "text.safetensors").write_text("no tensors")
        with pytest.raises(EncoderError, match="cannot be read"):
            ImageEncoder.from_timm("resnet10t", tmp_path / "text.safetensors")

    def test_bad_argument(self):
        with pytest.raises(EncoderError, match="cannot build 'resnet10t' with .*no_such"):
            ImageEncoder.from_timm("resnet10t", no_such=1)

    @pytest.mark.parametrize(
        ("arch", "options", "words"),
        [
            ("resnet50.nonsense", {}, r"no weights 'nonsense' of 'resnet50'. It has .*'a1_in1k'"),
            ("test_vit", {"mlp_layer": "SwiGluPacked"}, r"mlp_layer='SwiGluPacked' is no class.*SwiGLUPacked"),
            ("vit_tiny_patch16_224", {"input_size": 96, "depth": 1}, "fails on crops of 96 px.*built with img_size=96"),
            ("coatnet_0_224", {"pretrained": True}, r"no weights of 'coatnet_0_224'.*weights=path"),
        ],
    )
    def test_what_timm_does_not_have(self, arch, options, words):
        with pytest.raises(EncoderError, match=words):
            ImageEncoder.from_timm(arch, **options)

    def test_fingerprint_does_not_hang_on_where_the_weights_lie(self, resnet, tmp_path):
        for name in ("a.pth", "b.pth"):
            torch.save(resnet.state_dict(), tmp_path / name)
        one, two = (
            ImageEncoder.from_timm("resnet10t", tmp_path / f"{n}.pth", input_size=64, output_stride=16) for n in "ab"
        )
        assert one.spec != two.spec
        assert one.fingerprint() == two.fingerprint()

    def test_spec_round_trip(self, resnet, tmp_path, monkeypatch):
        torch.save(resnet.state_dict(), tmp_path / "w.pth")
        monkeypatch.chdir(tmp_path)
        encoder = ImageEncoder.from_timm(
            "resnet10t", "w.pth", input_size=64, mean=(0.1, 0.2, 0.3), name="mine", output_stride=16
        )
        monkeypatch.chdir("/")
        again = ImageEncoder.from_spec(json.loads(json.dumps(encoder.spec)))
        assert again.fingerprint() == encoder.fingerprint()
        assert (again.name, again.mean, again.spec) == ("mine", (0.1, 0.2, 0.3), encoder.spec)
        torch.testing.assert_close(again.encode(crops(64)), encoder.encode(crops(64)))

    def test_random_weights_have_no_spec(self):
        assert ImageEncoder.from_timm("resnet10t", input_size=64).spec is None

    def test_spec_of_moved_weights(self, resnet, tmp_path):
        torch.save(resnet.state_dict(), tmp_path / "w.pth")
        spec = ImageEncoder.from_timm("resnet10t", tmp_path / "w.pth", input_size=64).spec
        (tmp_path / "w.pth").unlink()
        with pytest.raises(EncoderError, match=r"w\.pth' is no file"):
            ImageEncoder.from_spec(spec)


class TestGetEncoder:
    def test_default_is_embedded(self):
        encoder = get_encoder()
        entry = REGISTRY["stain-stats"]
        out = encoder.encode(crops(112))
        assert (encoder.name, encoder.input_size, out.shape) == ("stain-stats", entry.input_size, (3, entry.dim))
        again = ImageEncoder.from_spec(json.loads(json.dumps(encoder.spec)))
        assert again.fingerprint() == encoder.fingerprint()
        assert torch.equal(again.encode(crops(112)), out)

    def test_instances_and_modules(self):
        mine = ImageEncoder(Mean(), "mean", 8)
        assert get_encoder(mine) is mine
        for raw in (Mean(), lambda x: x):
            with pytest.raises(EncoderError, match=r"sg\.ImageEncoder\(module.*input_size"):
                get_encoder(raw)
        with pytest.raises(EncoderError, match="has its weights already"):
            get_encoder(mine, weights="w.pth")
        with pytest.raises(EncoderError, match="no weights to load"):
            get_encoder("stain-stats", weights="w.pth")

    def test_unknown_name_suggests(self):
        with pytest.raises(EncoderError, match=r"'resnet5O'.*Registered: .*resnet50"):
            get_encoder("resnet5O")

    def test_timm_name_with_weights(self, resnet, tmp_path):
        torch.save(resnet.state_dict(), tmp_path / "w.pth")
        encoder = get_encoder("resnet10t", weights=tmp_path / "w.pth")
        assert (encoder.name, encoder.dim, encoder.spec["kind"]) == ("resnet10t", 512, "timm")

    def test_registered_weights_from_a_file(self, monkeypatch, tmp_path, caplog):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(encoders, "_warned", set())
        # The same entry with a small network: only the size of the checkpoint differs.
        entry = replace(REGISTRY["kaiko-vits16"], architecture="test_vit", dim=64, input_size=160)
        monkeypatch.setitem(REGISTRY, "kaiko-vits16", entry)
        whole = timm.create_model(entry.architecture, pretrained=False, **entry.kwargs)
        torch.save(whole.state_dict(), tmp_path / "vits16.pth")
        with caplog.at_level(logging.WARNING, "sigmma_sc"):
            encoder = get_encoder("kaiko-vits16", weights=tmp_path / "vits16.pth")
            again = ImageEncoder.from_spec(json.loads(json.dumps(encoder.spec)))
        assert [record.getMessage().split(",")[0] for record in caplog.records] == [
            "Image encoder kaiko-vits16: licence Kaiko non-commercial"
        ]
        assert again.fingerprint() == encoder.fingerprint()
        whole.reset_classifier(0)
        torch.testing.assert_close(encoder.encode(crops(160, 1)), by_hand(whole, crops(160, 1), entry.mean, entry.std))


@pytest.mark.real
def test_mobilenet_weights():
    path = WEIGHTS / "mobilenetv2_100.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent; set SIGMMA_WEIGHTS to its folder")
    half = (0.5, 0.5, 0.5)
    encoder = ImageEncoder.from_timm("mobilenetv2_100", path, mean=half, std=half, pad_type="same")
    assert (encoder.dim, encoder.input_size) == (1280, 224)
    again = ImageEncoder.from_spec(json.loads(json.dumps(encoder.spec)))
    assert again.fingerprint() == encoder.fingerprint()
    # Trained weights tell a texture from a flat crop, and give a crop and its mirror image nearly the same features.
    torch.manual_seed(0)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 28, 28), size=(224, 224), mode="bilinear")
    images = torch.cat([texture, texture.flip(3), torch.full_like(texture, 0.5)]).mul(255).to(torch.uint8)
    out = torch.nn.functional.normalize(encoder.encode(images), dim=1)
    assert out[0] @ out[1] > out[0] @ out[2] + 0.1
