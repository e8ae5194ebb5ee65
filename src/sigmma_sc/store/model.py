"""Models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc._files import fresh_folder, recover
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.errors import EncoderError, ExistsError, MissingKeyError, SetupError
from sigmma_sc.infer.reference import PREFIX, Reference, reference_tensors, restore_reference
from sigmma_sc.niches.prototypes import NichePrototypes
from sigmma_sc.tissue.setup import Setup
from sigmma_sc.train.history import history_from_json, history_to_json

if TYPE_CHECKING:
    import pandas as pd

    from sigmma_sc.encoders.encoder import ImageEncoder

FORMAT = 9
PLAIN = ("kind", "config", "extra", "encoder", "n_node_features", "epochs")
"""Fields of a saved model that are JSON values as they are."""

JSON, WEIGHTS = "model.json", "weights.safetensors"
IMAGE = f"{PREFIX}image."
TENSOR = "__tensor__"  # no slide has this name

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")
FILES_OF_TIMM = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


@dataclass(frozen=True)
class SavedModel:
    """A model as a folder holds it."""

    kind: str  # name of the model's class
    # Setup of the object trained on, and options of the method as JSON values.
    setup: Setup
    config: dict[str, Any]
    extra: dict[str, Any]  # further arguments of the model's class
    encoder: dict[str, Any]  # how to load the image encoder and how to recognise it
    n_node_features: int  # width of the node features
    data: dict[str, Any]  # state of the tissue data
    towers: dict[str, torch.Tensor]  # state of the towers
    # Losses by epoch, and the number of epochs trained.
    history: dict[str, pd.DataFrame]
    epochs: int
    reference: Reference | None  # tiles to predict expression from; None for a model without counts
    niches: NichePrototypes | None  # niches of the model; None where none are set


def is_writer() -> bool:
    """Whether this process is the one of several that writes."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)


def require_replaceable(path: str | Path, overwrite: bool) -> Path:
    """Path of a folder to write to; :class:`ExistsError` unless it is free or holds a model that may be replaced."""
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
    if path.exists() and not (path / JSON).exists():
        raise ExistsError(f"{path} exists and is no saved model; it is not replaced. Choose another path.")
    if path.exists() and (others := sorted(p.name for p in path.iterdir() if p.name not in (JSON, WEIGHTS))):
        raise ExistsError(f"{path} holds more than a saved model ({', '.join(others)}). Choose another path.")
    return path


def write_model(path: Path, saved: SavedModel) -> None:
    """Write a model; a crash leaves the old one or the new one."""
    from safetensors.torch import save_file

    tensors = {f"towers.{name}": value.detach().cpu().contiguous() for name, value in saved.towers.items()}
    described = {
        **{name: getattr(saved, name) for name in PLAIN},
        "format": FORMAT,
        "setup": saved.setup.to_json(),
        "data": _without_arrays(saved.data, "data", tensors),
        "history": history_to_json(saved.history),
        "reference": None,
        "niches": None if saved.niches is None else _without_arrays(saved.niches.to_dict(), "niches", tensors),
    }
    if saved.reference is not None:
        described["reference"] = {"genes": saved.reference.genes, "library": saved.reference.library}
        tensors |= reference_tensors(saved.reference)
    with fresh_folder(path) as folder:
        (folder / JSON).write_text(json.dumps(described, indent=1))
        save_file(tensors, folder / WEIGHTS)


def read_model(path: str | Path, kind: str) -> SavedModel:
    """Read a model of the class ``kind``, or raise :class:`SetupError`; neither of its files can execute anything."""
    described, tensors = _read(Path(path).expanduser())
    if described["kind"] != kind:
        raise SetupError(f"{path} holds a {described['kind']}, not a {kind}. Load it with {described['kind']}.load().")
    setup = Setup.from_json(described["setup"])
    towers = {name.removeprefix("towers."): value for name, value in tensors.items() if name.startswith("towers.")}
    reference = None
    if described["reference"] is not None:
        scales = tuple(name.removeprefix(IMAGE) for name in tensors if name.startswith(IMAGE))
        reference = restore_reference(described["reference"], tensors, tuple(s for s in setup.scales if s in scales))
    niches = described["niches"]
    return SavedModel(
        **{name: described[name] for name in PLAIN},
        setup=setup,
        data=_with_arrays(described["data"], tensors),
        towers=towers,
        history=history_from_json(described["history"]),
        reference=reference,
        niches=None if niches is None else NichePrototypes.from_dict(_with_arrays(niches, tensors)),
    )


def _without_arrays(value: object, name: str, tensors: dict[str, torch.Tensor]) -> object:
    """JSON values of nested dicts; arrays go to ``tensors`` by their dotted name, which stands in their place."""
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {TENSOR: name}
    if isinstance(value, dict):
        return {key: _without_arrays(part, f"{name}.{key}", tensors) for key, part in value.items()}
    return value


def _with_arrays(value: object, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401 - any JSON value
    """Rebuild what :func:`_without_arrays` was given."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {TENSOR}:
        return tensors[value[TENSOR]].numpy()
    return {key: _with_arrays(part, tensors) for key, part in value.items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of a saved model; neither format can execute anything."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    recover(path)
    for name in (JSON, WEIGHTS):
        if not (path / name).exists():
            raise MissingKeyError(f"{path} holds no saved model ({name} is missing). Give the folder of model.save().")
    try:
        described = json.loads((path / JSON).read_text())
        tensors = load_file(path / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise SetupError(f"The model in {path} is damaged, or was not written by model.save(): {error}.") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise SetupError(
            f"{path} has format {found}, this version reads {FORMAT}. Load it with the version of sigmma-sc that saved it."
        )
    return described, tensors


def saved_encoder(described: dict[str, Any], given: ImageEncoder | None) -> ImageEncoder:
    """The image encoder that a model was trained with: the one given, if it is that one, or loaded as described."""
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
