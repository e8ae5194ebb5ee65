"""Names of encoders: the published ones, those that a session registers, and those of installed packages."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import sigmma_sc as sg
from sigmma_sc import SIGMMA, ImageEncoder, get_encoder, register_encoder
from sigmma_sc.encoders import registry
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.encoders.registry import list_encoders
from sigmma_sc.errors import EncoderError, EncoderWarning, SetupError

PLAIN = {"input_size": 16, "mean": (0, 0, 0), "std": (1, 1, 1)}
MODULE = """
import sys
import sigmma_sc as sg


def mean_colour(weights):
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def register():
    sg.register_encoder("mean-colour", mean_colour, input_size=16, mean=(0, 0, 0), std=(1, 1, 1), licence="MIT")
"""


@pytest.fixture(autouse=True)
def only_published(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_packages_loaded", True)


def mean_colour(weights):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def of_checkpoint(weights):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module


def crops(side=16, n=3):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TestFunctions:
    def test_name_reaches_the_network(self):
        register_encoder("mine", mean_colour, input_size=16, mean=(0.5, 0.25, 0), std=(0.5, 0.25, 2))
        encoder = get_encoder("mine")
        assert (encoder.name, encoder.dim, encoder.input_size) == ("mine", 3, 16)
        expected = (crops().double().mean((2, 3)) / 255 - torch.tensor([0.5, 0.25, 0])) / torch.tensor([0.5, 0.25, 2])
        torch.testing.assert_close(encoder.encode(crops()), expected.float())

    def test_checkpoint_is_the_given_one_else_the_registered_one(self, tmp_path, monkeypatch):
        for name, value in (("first.pth", 1.0), ("second.pth", 2.0)):
            torch.save({"2.weight": torch.full((2, 3), value), "2.bias": torch.zeros(2)}, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        register_encoder("mine", of_checkpoint, weights="first.pth", **PLAIN)
        monkeypatch.chdir("/")
        first, second = get_encoder("mine"), get_encoder("mine", weights=tmp_path / "second.pth")
        torch.testing.assert_close(2 * first.encode(crops()), second.encode(crops()))
        assert first.spec["weights"] is None
        for encoder in (first, second):
            again = ImageEncoder.from_spec(json.loads(json.dumps(encoder.spec)))
            assert mismatch(identity_of(again), identity_of(encoder)) == []

    def test_listed_with_its_terms(self):
        register_encoder("mine", mean_colour, **PLAIN, licence="MIT", page="https://mine.org", citation="Me 2026")
        register_encoder("yours", partial(mean_colour), **PLAIN, dim=3, gated=True)
        table = list_encoders()
        assert table.index[-2:].tolist() == ["mine", "yours"]
        assert table.loc["mine", ["architecture", "licence", "page", "citation", "gated"]].tolist() == [
            *("mean_colour", "MIT", "https://mine.org", "Me 2026", False)
        ]
        assert table.loc["yours", ["architecture", "dim", "gated"]].tolist() == ["partial", 3, True]
        assert table.loc["uni", "dim"] == 1024

    def test_missing_weights_are_named_even_if_the_function_ignores_them(self):
        register_encoder("mine", mean_colour, **PLAIN, weights="nowhere.pth")
        with pytest.raises(EncoderError, match=r"weights='.*nowhere.pth' of image encoder 'mine' do not exist"):
            get_encoder("mine")

    def test_failing_function_is_named(self, tmp_path):
        def fails(weights):
            raise FileNotFoundError("no such file")

        (tmp_path / "w.pth").touch()
        register_encoder("mine", fails, **PLAIN)
        with pytest.raises(
            EncoderError, match=r"'mine' cannot be built.*fails with weights='.*w.pth', FileNotFoundError"
        ):
            get_encoder("mine", weights=tmp_path / "w.pth")
        register_encoder("none", lambda weights: None, **PLAIN)
        with pytest.raises(EncoderError, match=r"'none' cannot be built.*returns None. Have it return a torch module"):
            get_encoder("none")

    def test_wrong_dim_is_found_with_the_first_crops(self):
        register_encoder("mine", mean_colour, **PLAIN, dim=4)
        with pytest.raises(EncoderError, match=r"'mine' maps \(3, 3, 16, 16\) to \(3, 3\); \(3, 4\) is needed"):
            get_encoder("mine").encode(crops())


class TestTimm:
    def test_equals_the_network_of_timm(self, tmp_path):
        torch.manual_seed(0)
        save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "w.safetensors")
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        register_encoder(
            "mine", "resnet10t", weights=tmp_path / "w.safetensors", input_size=64, mean=mean, std=std, output_stride=16
        )
        encoder = get_encoder("mine")
        expected = ImageEncoder.from_timm(
            "resnet10t", tmp_path / "w.safetensors", 64, mean, std, name="mine", output_stride=16
        )
        assert mismatch(identity_of(encoder), identity_of(expected)) == []
        assert torch.equal(encoder.encode(crops(64)), expected.encode(crops(64)))
        with pytest.raises(EncoderError, match="w.pth' is no file"):
            get_encoder("mine", weights="w.pth")

    def test_what_timm_does_not_have(self, tmp_path):
        save_file({"weight": torch.zeros(1)}, tmp_path / "w.safetensors")
        register_encoder("mine", "resnet10t", weights=tmp_path / "w.safetensors", **PLAIN, no_such=1)
        with pytest.raises(EncoderError, match="cannot build 'resnet10t' with .*no_such"):
            get_encoder("mine")
        register_encoder("yours", "resnet1O", page="https://huggingface.co/lab/yours", **PLAIN)
        with pytest.raises(EncoderError, match="No image encoder is called 'resnet1O'.*such as resnet1"):
            get_encoder("yours")

    def test_needs_weights(self):
        register_encoder("mine", "resnet10t", page="https://mine.org", **PLAIN)
        with pytest.raises(
            EncoderError, match=r"'mine' cannot be fetched: page='https://mine.org' is not on .*weights=path"
        ):
            get_encoder("mine")


class TestRefused:
    @pytest.mark.parametrize("name", ["", "my encoder", "hf-hub:mine", "a/b", 3, None])
    def test_malformed_names(self, name):
        with pytest.raises(EncoderError, match=f"name={name!r} must consist of letters"):
            register_encoder(name, mean_colour, **PLAIN)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"network": nn.Linear(3, 2)}, r"Linear, built already.*lambda weights"),
            ({"network": lambda: None}, "function of one argument, the path of a checkpoint"),
            ({"network": 3}, "network=3 must be the name of a timm network, or a function"),
            ({"depth": 2}, "depth: such arguments go with a timm network. Set them in mean_colour"),
            ({"mean": 0.5}, "mean=0.5 and std=.* must be three numbers each"),
            ({"std": (1, 0, 1)}, "std positive"),
            ({"licence": None}, "licence=None must be a text"),
            ({"page": 1}, "page=1 must be a text"),
            ({"gated": "yes"}, "gated='yes' must be True or False"),
            ({"weights": 1}, "weights=1 must be the path of a checkpoint"),
        ],
    )
    def test_bad_values(self, change, words):
        with pytest.raises(EncoderError, match=words):
            register_encoder("mine", **{"network": mean_colour, **PLAIN, **change})
        assert "mine" not in list_encoders().index

    @pytest.mark.parametrize("change", [{"input_size": 0}, {"input_size": 16.5}, {"dim": 0}, {"dim": "3"}])
    def test_sizes(self, change):
        with pytest.raises(SetupError, match="must be a whole number, 1 or more"):
            register_encoder("mine", mean_colour, **{**PLAIN, **change})

    def test_names_that_are_taken(self):
        register_encoder("mine", mean_colour, **PLAIN)
        for name in ("mine", "uni"):
            with pytest.raises(EncoderError, match=f"{name!r} is registered already.*overwrite=True"):
                register_encoder(name, mean_colour, **PLAIN)
            register_encoder(name, lambda weights: lambda x: x.amax((2, 3)), **PLAIN, overwrite=True)
            assert torch.equal(get_encoder(name).encode(crops()), crops().amax((2, 3)) / 255)

    def test_arguments_of_timm(self):
        register_encoder("mine", mean_colour, **PLAIN)
        with pytest.raises(EncoderError, match="depth: arguments go with a timm model; 'mine' is registered"):
            get_encoder("mine", depth=2)


def test_a_saved_model_asks_for_the_encoder_that_it_was_trained_with(tiny, tmp_path):
    register_encoder("mine", mean_colour, **PLAIN)
    model = SIGMMA(tiny, image_encoder="mine", n_latent=8)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.save(tmp_path / "model")
    expected = model.get_latent_representation()
    assert np.array_equal(SIGMMA.load(tmp_path / "model", tiny).get_latent_representation(), expected)
    registry._registered.clear()
    with pytest.raises(
        EncoderError, match=r"'mine' is not registered in this session.*sg\.register_encoder\('mine', …\)"
    ):
        SIGMMA.load(tmp_path / "model", tiny)
    register_encoder("mine", lambda weights: lambda x: x.amax((2, 3)), **PLAIN)
    with pytest.raises(EncoderError, match="'mine' is not the one the model was trained with.* output"):
        SIGMMA.load(tmp_path / "model", tiny)


def install(folder, package, module, function="register"):
    """Put a package where an installer would: its module, and metadata with an entry point."""
    (folder / f"{package}.py").write_text(module)
    (folder / f"{package}-1.0.dist-info").mkdir()
    (folder / f"{package}-1.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    )
    points = f"[sigmma_sc.encoders]\n{package} = {package}:{function}\n"
    (folder / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(points)


class TestPackages:
    @pytest.fixture
    def site(self, tmp_path, monkeypatch):
        monkeypatch.setattr(registry, "_packages_loaded", False)
        monkeypatch.syspath_prepend(tmp_path)
        yield tmp_path
        for module in tmp_path.glob("*.py"):
            sys.modules.pop(module.stem, None)

    def test_another_process_finds_the_name(self, tmp_path):
        """The command line lists it, and a program gets it."""
        install(tmp_path, "lab", MODULE)
        program = (
            "import sys, sigmma_sc as sg\n"
            "from sigmma_sc import cli\n"
            "print(sg.get_encoder('mean-colour').dim)\n"
            "sys.argv = ['sigmma-sc', 'encoders']\n"
            "cli.main()"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "COLUMNS": "200"}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("3\n")
        row = next(line for line in run.stdout.splitlines() if "mean-colour" in line)
        assert "mean_colour" in row
        assert "MIT" in row

    def test_loaded_when_a_name_is_not_known(self, site):
        install(site, "lab_lazy", MODULE)
        get_encoder("stain-stats")
        assert "lab_lazy" not in sys.modules
        assert get_encoder("mean-colour").dim == 3

    def test_registered_before_a_session_takes_the_name(self, site):
        install(site, "lab_first", MODULE)
        with pytest.raises(EncoderError, match="'mean-colour' is registered already"):
            register_encoder("mean-colour", mean_colour, **PLAIN)

    @pytest.mark.parametrize(
        ("package", "module", "words"),
        [
            ("lab_import", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("lab_missing", "", "AttributeError"),
            (
                "lab_half",
                MODULE.replace("def register():", "def register():\n    sg.register_encoder('half', mean_colour, input_size=16, mean=(0, 0, 0), std=(1, 1, 1))")
                + "    raise RuntimeError('no GPU')\n",
                "RuntimeError: no GPU",
            ),
            ("lab_taken", MODULE.replace('"mean-colour"', '"uni"'), "'uni' is registered already"),
            (
                "lab_replaces",
                MODULE.replace('"mean-colour"', '"uni"').replace('"MIT"', '"MIT", overwrite=True'),
                "It replaces uni; only a session may",
            ),
        ],
    )  # fmt: skip
    def test_one_that_fails_is_left_out_with_a_warning(self, site, package, module, words):
        install(site, package, module)
        with pytest.warns(EncoderWarning, match=f"{package}:register': its image encoders are left out. .*{words}"):
            table = list_encoders()
        assert table.index.tolist() == list(registry.REGISTRY)
        assert table.loc["uni", "licence"] == "CC-BY-NC-ND-4.0"
        assert sg.get_encoder().name == "stain-stats"


def test_published():
    table = list_encoders()
    assert set(table.index) == {
        *("stain-stats", "resnet50", "kaiko-vits16", "lunit-vits16", "uni", "uni2-h", "h-optimus-0", "h0-mini"),
        *("virchow2", "phikon-v2", "conch", "clip", "plip", "omiclip"),
    }
    assert table.index.name == "name"
    assert table.loc["uni", ["dim", "licence", "gated"]].tolist() == [1024, "CC-BY-NC-ND-4.0", True]
    assert table.loc["h-optimus-0", "mean"] == (0.707223, 0.578729, 0.703617)
    assert table.loc["resnet50", ["dim", "gated"]].tolist() == [2048, False]
    assert table.loc["uni2-h", "page"] == "https://huggingface.co/MahmoodLab/UNI2-h"
    assert table.loc["virchow2", "pooling"] == table.loc["h0-mini", "pooling"] == "class token, mean of patch tokens"
    assert table.index[table["gated"]].tolist() == ["uni", "uni2-h", "h-optimus-0", "h0-mini", "virchow2", "conch", "omiclip"]  # fmt: skip
    assert not table.isna().any(axis=None)
