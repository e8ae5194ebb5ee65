"""Checkpoints in files, and on a hub that this machine serves itself."""

import json
import logging
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn

from sigmma_sc.encoders import encoder as encoders
from sigmma_sc.encoders import registry
from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder
from sigmma_sc.encoders.registry import REGISTRY, register_encoder
from sigmma_sc.encoders.weights import fetch_weights, load_weights, read_weights
from sigmma_sc.errors import EncoderError


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

    def test_a_registered_network_of_timm_comes_from_its_page(self, hub, monkeypatch):
        monkeypatch.setattr(registry, "_registered", {})
        model = scramble(timm.create_model("test_vit"))
        Hub.files["lab/mine"] = save(model.state_dict())
        half = (0.5, 0.5, 0.5)
        page = "https://huggingface.co/lab/mine"
        register_encoder("mine", "test_vit", page=page, input_size=160, mean=half, std=half)
        register_encoder("typo", "test_vlt", page=page, input_size=160, mean=half, std=half)
        with pytest.raises(EncoderError, match="No image encoder is called 'test_vlt'"):
            get_encoder("typo")
        assert not Hub.asked
        encoder = get_encoder("mine")
        model.reset_classifier(0)
        with torch.no_grad():
            torch.testing.assert_close(encoder.encode(crops(160)), model(normalised(crops(160), half, half)))
        register_encoder("secret", "test_vit", page=f"{page}-2", gated=True, input_size=160, mean=half, std=half)
        with pytest.raises(EncoderError, match="ask for access at https://huggingface.co/lab/mine-2, then log in"):
            get_encoder("secret")

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


class TestOffline:
    @pytest.mark.parametrize("name", [name for name in REGISTRY if name != "stain-stats"])
    def test_offline_fails_before_building(self, name, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("built without weights"))
        with pytest.raises(EncoderError) as caught:
            get_encoder(name)
        text = str(caught.value)
        assert REGISTRY[name].page in text
        assert "HF_HUB_OFFLINE" in text
        assert f"sg.get_encoder({name!r}, weights=path)" in text
        assert "stain-stats, resnet50" in text
        assert ("ask for access" in text) == REGISTRY[name].gated

    def test_weights_that_lie_on_no_hub(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise OSError("no route")

        config = replace(timm.get_pretrained_cfg("test_vit"), hf_hub_id=None, origin_url=None)
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
        monkeypatch.setattr(timm, "create_model", refuse)
        with pytest.raises(
            EncoderError, match=r"no route\. Download them and pass sg\.get_encoder\('test_vit', weights=path\)"
        ):
            get_encoder("test_vit")

    def test_refused_access(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise OSError("403 Client Error: not in the authorized list")

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
        with pytest.raises(
            EncoderError, match="authorized list.*ask for access at https://huggingface.co/MahmoodLab/UNI,"
        ):
            get_encoder("uni")
