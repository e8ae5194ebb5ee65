"""Models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sigmma_sc._checks import EncoderError, ExistsError, MissingKeyError, SetupError
from sigmma_sc._files import fresh_folder
from sigmma_sc.nn.towers import Towers
from sigmma_sc.tissue.setup import Setup, register, stored_setup
from sigmma_sc.train.nodes import CountsPCA

if TYPE_CHECKING:
    from sigmma_sc.nn.encoders import ImageEncoder

FORMAT = 1
JSON, WEIGHTS = "model.json", "weights.safetensors"


def save(model: Any, path: str | Path, overwrite: bool) -> None:
    """Write a model; a crash leaves the old one or the new one."""
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
    if path.exists() and not (path / JSON).exists():
        raise ExistsError(f"{path} exists and is no saved model; it is not replaced. Choose another path.")
    with fresh_folder(path) as folder:
        (folder / JSON).write_text(json.dumps(_describe(model), indent=1))
        save_file(_tensors(model), folder / WEIGHTS)


def _describe(model: Any) -> dict[str, Any]:
    encoder, data = model.image_encoder, model.data
    return {
        "format": FORMAT,
        "setup": model.setup.to_json(),
        "config": model.config,
        "encoder": {
            "name": encoder.name,
            "dim": encoder.dim,
            "spec": encoder.spec,
            "fingerprint": encoder.fingerprint(),
        },
        "n_nodes": model.module.node_standardise.mean.shape[0],
        "split": data.split,
        "roles": {slide: roles.tolist() for slide, roles in data.roles.items()},
        "genes": None if data.nodes is None else data.nodes.genes,
        "target_sum": None if data.nodes is None else data.nodes.target_sum,
        "history": {name: frame.to_json(orient="split") for name, frame in model.history.items()},
    }


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    tensors = {f"module.{k}": v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    if model.data.nodes is not None:
        tensors["nodes.mean"] = torch.from_numpy(np.ascontiguousarray(model.data.nodes.mean))
        tensors["nodes.components"] = torch.from_numpy(np.ascontiguousarray(model.data.nodes.components))
    return tensors


def load(cls: type, path: str | Path, sdata: Any, image_encoder: ImageEncoder | None) -> Any:
    """Rebuild a model around an object; see :meth:`sigmma_sc.SIGMMA.load`."""
    from safetensors.torch import load_file

    path = Path(path)
    if not (path / JSON).exists():
        raise MissingKeyError(
            f"{path} holds no saved model ({JSON} is missing). Give the folder that model.save() wrote."
        )
    described = json.loads((path / JSON).read_text())
    if described["format"] != FORMAT:
        raise SetupError(f"{path} has format {described['format']}, this version reads {FORMAT}. Update sigmma-sc.")
    setup = Setup.from_json(described["setup"])
    for one in (sdata if isinstance(sdata, dict) else {"": sdata}).values():
        if stored_setup(one) is None:
            register(one, setup)
    model = cls(sdata, image_encoder=_encoder(described["encoder"], image_encoder), **described["config"])
    if (model.setup.tile_size, model.setup.grids) != (setup.tile_size, setup.grids):
        raise SetupError(
            f"The object is set up with tile_size={model.setup.tile_size} and grids={model.setup.grids}, the model was trained "
            f"with {setup.tile_size} and {setup.grids}. Set the object up with the model's values."
        )
    tensors = load_file(path / WEIGHTS)
    if described["genes"] is not None:
        mean, components = (tensors.pop(f"nodes.{name}").numpy() for name in ("mean", "components"))
        model.data.nodes = CountsPCA(described["genes"], described["target_sum"], mean, components)
    config = described["config"]
    model.module = Towers(
        described["encoder"]["dim"],
        described["n_nodes"],
        setup.grids,
        setup.scales,
        **{name: config[name] for name in ("n_latent", "edges", "edge_temperature", "dropout", "temperature")},
    )
    model.module.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items()})
    model.module.eval()
    model.data.split = described["split"]
    model.data.roles = {slide: np.array(roles, dtype="<U6") for slide, roles in described["roles"].items()}
    model.history_ = {
        k: pd.read_json(StringIO(v), orient="split").rename_axis("epoch") for k, v in described["history"].items()
    }
    model.is_trained_ = True
    return model


def _encoder(described: dict[str, Any], given: ImageEncoder | None) -> ImageEncoder:
    from sigmma_sc.nn.encoders import ImageEncoder, get_encoder

    if given is not None:
        encoder = get_encoder(given)
    elif described["spec"] is None:
        raise EncoderError(
            f"The model was trained with an image encoder of your own, {described['name']!r}. Pass it: load(path, sdata, image_encoder=…)."
        )
    else:
        encoder = ImageEncoder.from_spec(described["spec"])
    if encoder.fingerprint() != described["fingerprint"]:
        raise EncoderError(
            f"Image encoder {encoder.name!r} is not the one the model was trained with ({described['name']!r}): its weights or "
            "normalisation differ. Pass the same encoder as image_encoder=…"
        )
    return encoder
