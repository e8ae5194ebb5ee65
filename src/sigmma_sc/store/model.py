"""Models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sigmma_sc._files import fresh_folder, recover
from sigmma_sc.errors import EncoderError, ExistsError, ExpressionWarning, MissingKeyError, SetupError
from sigmma_sc.nn.trainable import Backbone
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.nn.towers import Towers
from sigmma_sc.encoders.tuning import tuned
from sigmma_sc.tissue.setup import Setup
from sigmma_sc.store.compatible import adopt, require_match
from sigmma_sc.features.nodes import CountsPCA, GeneVectors
from sigmma_sc.infer.reference import describe_reference, reference_of, reference_tensors, restore_reference
from sigmma_sc.features.moments import Moments

if TYPE_CHECKING:
    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.features.data import TissueData
    from sigmma_sc.infer.reference import Reference

FORMAT = 5
JSON, WEIGHTS = "model.json", "weights.safetensors"

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")
FILES_OF_TIMM = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def save(model: Any, path: str | Path, overwrite: bool) -> None:
    """Write a model; a crash leaves the old one or the new one. Of several processes the first one writes."""
    from safetensors.torch import save_file

    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
    if path.exists() and not (path / JSON).exists():
        raise ExistsError(f"{path} exists and is no saved model; it is not replaced. Choose another path.")
    if path.exists() and (others := sorted(p.name for p in path.iterdir() if p.name not in (JSON, WEIGHTS))):
        raise ExistsError(
            f"{path} holds more than a saved model ({', '.join(others)}), which would be lost. Choose another path."
        )
    reference = _reference_or_none(model)
    described, tensors = _describe(model), _tensors(model)
    described["reference"] = None if reference is None else describe_reference(reference)
    tensors |= {} if reference is None else reference_tensors(reference)
    with fresh_folder(path) as folder:
        (folder / JSON).write_text(json.dumps(described, indent=1))
        save_file(tensors, folder / WEIGHTS)


def _reference_or_none(model: Any) -> Reference | None:
    """A model without counts to predict is saved all the same, with a warning."""
    try:
        return reference_of(model)
    except (SetupError, MissingKeyError) as error:
        warnings.warn(
            f"The model is saved without expression to predict from: {error}", ExpressionWarning, stacklevel=4
        )
        return None


def _describe(model: Any) -> dict[str, Any]:
    encoder, data = model.image_encoder, model.data
    return {
        "format": FORMAT,
        "setup": model.setup.to_json(),
        "config": model.config.to_json(),
        "options": model.options,
        "encoder": {**identity_of(encoder), "dim": encoder.dim, "spec": encoder.spec},
        "n_nodes": model.module.n_nodes,
        **describe_data(data),
        "history": history_to_json(model.history),
        "epochs": model.epochs_,
    }


def describe_data(data: TissueData) -> dict[str, Any]:
    """Split, roles of the tiles and genes, as plain JSON; the rest of it is in :func:`data_tensors`."""
    return {
        "split": data.split,
        "roles": {slide: roles.tolist() for slide, roles in data.roles.items()},
        "identities": data.identities,
        "genes": None if data.nodes is None else data.nodes.genes,
        "target_sum": None if data.nodes is None else data.nodes.target_sum,
    }


def data_tensors(data: TissueData) -> dict[str, torch.Tensor]:
    """The PCA of the counts, if there is one, and by what slides are centred and scaled on average."""
    arrays = {f"typical.{kind}.{m}": getattr(v, m) for kind, v in data.typical.items() for m in ("mean", "spread")}
    if isinstance(data.nodes, CountsPCA):
        arrays |= {f"nodes.{name}": getattr(data.nodes, name) for name in ("mean", "components")}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def restore_data(data: TissueData, described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Take up what :func:`describe_data` and :func:`data_tensors` gave."""
    data.split = described["split"]
    data.roles = {slide: np.array(roles, dtype="<U6") for slide, roles in described["roles"].items()}
    data.identities = described["identities"]
    kinds = {name.split(".")[1] for name in tensors if name.startswith("typical.")}
    data.typical = {k: Moments(*(tensors[f"typical.{k}.{m}"].numpy() for m in ("mean", "spread"))) for k in kinds}
    totals = data.config.cell_covariates
    if data.config.cells == "genes":
        data.nodes = GeneVectors(described["genes"], described["target_sum"], totals)
    elif described["genes"] is not None:
        mean, components = (tensors[f"nodes.{name}"].numpy() for name in ("mean", "components"))
        data.nodes = CountsPCA(described["genes"], described["target_sum"], mean, components, totals)


def history_to_json(history: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Losses by epoch as plain JSON, exact to the last bit."""
    return {
        name: {"by": frame.index.name, "index": list(map(int, frame.index)), "values": list(map(float, frame[name]))}
        for name, frame in history.items()
    }


def history_from_json(stored: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Rebuild what :func:`history_to_json` gave."""
    return {
        name: pd.DataFrame({name: part["values"]}, pd.Index(part["index"], name=part["by"]))
        for name, part in stored.items()
    }


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    weights = {f"module.{k}": v.detach().cpu().contiguous() for k, v in model.module.own_state().items()}
    return {**weights, **data_tensors(model.data)}


def load(
    cls: type, path: str | Path, sdata: Any, image_encoder: ImageEncoder | None, cache_dir: str | Path | None
) -> Any:
    """Rebuild a model around an object; see :meth:`sigmma_sc.SIGMMA.load`."""
    described, tensors = _read(Path(path).expanduser())
    setup, config = Setup.from_json(described["setup"]), described["config"]
    adopt(sdata, setup)
    require_match(setup, described["genes"], described["n_nodes"] - config["cell_covariates"], sdata)
    encoder = _encoder(described["encoder"], image_encoder)
    model = cls(sdata, image_encoder=encoder, cache_dir=cache_dir, **config, **described["options"])
    restore_data(model.data, described, tensors)
    model.module = model._towers(described["n_nodes"])
    model.module.load_own_state(
        {k.removeprefix("module."): value for k, value in tensors.items() if k.startswith("module.")}
    )
    if model.module.backbone is not None:
        model.data.use_encoder(model.module.backbone.encoder)
    model.module.eval()
    if described["reference"] is not None:
        model._reference = restore_reference(described["reference"], tensors, model.module.aligned)
    if model.setup.table_key is None:
        # What later objects are compared with, and what is saved again, is a setup with cells.
        model.setup = model.data.setup = setup
    model.history_, model.epochs_ = history_from_json(described["history"]), described["epochs"]
    model.is_trained_ = True
    return model


def build_towers(model: Any, n_nodes: int) -> Towers:
    """Fresh towers as the model's configuration has them."""
    setup = model.setup
    return Towers(model.image_encoder.dim, n_nodes, setup.grids, setup.scales, model.config, build_backbone(model))


def build_backbone(model: Any) -> Backbone | None:
    """A copy of the model's image encoder to be trained; ``None`` where it is frozen."""
    config, grids, encoder = model.config, model.setup.grids, model.image_encoder
    if config.regime == "frozen":
        return None
    return Backbone(tuned(encoder, config), grids, config.crop_sizes or (encoder.input_size,) * len(grids))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of a saved model; neither format can execute anything."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    recover(path)
    for name in (JSON, WEIGHTS):
        if not (path / name).exists():
            raise MissingKeyError(
                f"{path} holds no saved model ({name} is missing). Give the folder that model.save() wrote."
            )
    try:
        described, tensors = json.loads((path / JSON).read_text()), load_file(path / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise SetupError(
            f"The model saved in {path} is damaged, or was not written by model.save(): {error}."
        ) from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise SetupError(
            f"{path} has format {found}, this version reads {FORMAT}. Load it with the version of sigmma-sc that saved it."
        )
    return described, tensors


def _encoder(described: dict[str, Any], given: ImageEncoder | None) -> ImageEncoder:
    from sigmma_sc.encoders.encoder import ImageEncoder, get_encoder

    if given is not None:
        encoder = get_encoder(given)
    elif described["spec"] is None or _from_elsewhere(described["spec"]):
        raise EncoderError(
            f"The model was trained with the image encoder {described['name']!r}, which is your own or from a place that a file may "
            "not name. Pass it: load(path, sdata, image_encoder=…)."
        )
    else:
        try:
            encoder = ImageEncoder.from_spec(described["spec"])
        except EncoderError as error:
            raise EncoderError(
                f"{error} The model was trained with the image encoder {described['name']!r}; if its weights lie elsewhere here, "
                f"pass it: load(path, sdata, image_encoder=sg.get_encoder({described['name']!r}, weights=…))."
            ) from error
    if different := mismatch(identity_of(encoder), described):
        raise EncoderError(
            f"Image encoder {encoder.name!r} is not the one the model was trained with ({described['name']!r}), which differs in its "
            f"{', '.join(different)}. Pass the same encoder as image_encoder=…"
        )
    return encoder


def _from_elsewhere(spec: dict[str, Any]) -> bool:
    """Whether a description has timm read a file or a repository of its choice: some versions of timm unpickle those."""
    return str(spec.get("arch", "")).startswith(ELSEWHERE) or not FILES_OF_TIMM.isdisjoint(spec)
