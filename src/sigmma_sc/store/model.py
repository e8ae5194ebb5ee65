"""Models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch

from sigmma_sc._checks import require_path
from sigmma_sc._files import fresh_folder, recover, require_writable
from sigmma_sc._schema import require_schema
from sigmma_sc.config import Config
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.errors import EncoderError, ExistsError, MissingKeyError, SetupError
from sigmma_sc.features.data import BEFORE, DataState
from sigmma_sc.infer.reference import PREFIX, Reference, reference_tensors, restore_reference
from sigmma_sc.niches.prototypes import NichePrototypes
from sigmma_sc.tissue.setup import Setup
from sigmma_sc.train.history import HistoryJson, history_from_json, history_to_json

if TYPE_CHECKING:
    import pandas as pd

    from sigmma_sc.encoders.encoder import ImageEncoder

FORMAT = 11
READABLE = (10, FORMAT)
"""Formats that are read. Format 10 has no ``even_lattices``, see :data:`~sigmma_sc.features.data.BEFORE`."""
PLAIN = ("kind", "config", "extra", "encoder", "n_node_features", "epochs")
"""Fields of a saved model that are JSON values as they are."""

RESERVED = {"sdata", "image_encoder", "cache_dir", "preset"}
"""Arguments of a model that a file may not give."""


class EncoderJson(TypedDict):
    """How to load an image encoder, and how to recognise it."""

    name: str
    input_size: int
    mean: list[float]
    std: list[float]
    fingerprint: str
    output: list[float]
    dim: int
    spec: dict[str, Any] | None


class ReferenceJson(TypedDict):
    """What of a reference is no array."""

    genes: list[str]
    library: float


class ModelJson(TypedDict):
    """The JSON of a saved model."""

    format: int
    checksum: str
    kind: str
    setup: dict[str, Any]
    config: dict[str, Any]
    extra: dict[str, Any]
    encoder: EncoderJson
    n_node_features: int
    epochs: int
    data: DataState
    history: HistoryJson
    reference: ReferenceJson | None
    niches: dict[str, Any] | None


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
    """Path of a folder to write to; :class:`ExistsError` unless it is free or holds a model that may be replaced.

    :class:`WriteError` where nothing can be written.
    """
    require_path(path, "path")
    path = Path(path).expanduser()
    recover(path)
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
    if path.exists() and not (path / JSON).exists():
        raise ExistsError(f"{path} exists and is no saved model; it is not replaced. Choose another path.")
    if path.exists() and (others := sorted(p.name for p in path.iterdir() if p.name not in (JSON, WEIGHTS))):
        raise ExistsError(f"{path} holds more than a saved model ({', '.join(others)}). Choose another path.")
    require_writable(path)
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
        save_file(tensors, folder / WEIGHTS)
        described["checksum"] = _checksum(folder / WEIGHTS)
        (folder / JSON).write_text(json.dumps(described, indent=1))


def read_model(path: str | Path, kind: str) -> SavedModel:
    """Read a model of the class ``kind``, or raise :class:`SetupError`; neither of its files can execute anything."""
    described, tensors = _read(Path(path).expanduser())
    try:
        return _saved(described, tensors, path, kind)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SetupError):
            raise
        raise SetupError(
            f"The model in {path} is damaged, or was not written by model.save(): {type(error).__name__} {error}."
        ) from error


def _saved(described: dict[str, Any], tensors: dict[str, torch.Tensor], path: str | Path, kind: str) -> SavedModel:
    if described["format"] < FORMAT:
        described["data"] = {**BEFORE, **described["data"]}
    require_schema(described, ModelJson, f"{path}: {JSON}", "This is not what model.save() writes. Save it again.")
    for name in sorted(
        described["config"].keys() - Config.__dataclass_fields__.keys() | described["extra"].keys() & RESERVED
    ):
        raise SetupError(f"{path}: {name!r} in {JSON} is no option of a model. Save it again.")
    if described["kind"] != kind:
        raise SetupError(f"{path} holds a {described['kind']}, not a {kind}. Load it with {described['kind']}.load().")
    setup = Setup.from_json(described["setup"], f"{path}: setup in {JSON}")
    for name, value in tensors.items():
        if not name.startswith("niches.") and value.is_floating_point() and not torch.isfinite(value).all():
            raise SetupError(f"{path}: tensor {name!r} in {WEIGHTS} is not finite: the file is damaged. Save it again.")
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


def setup_of_model(path: Path) -> Setup:
    """Setup of the object that a saved model was trained on."""
    described, _ = _read(path.expanduser())
    return Setup.from_json(described.get("setup"), f"{path}: setup in {JSON}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of a saved model; neither format can execute anything."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    recover(path)
    for name in (JSON, WEIGHTS):
        if not (path / name).is_file():
            raise MissingKeyError(f"{path} holds no saved model ({name} is missing). Give the folder of model.save().")
    damaged = f"The model in {path} is damaged, or was not written by model.save()"
    try:
        described = json.loads((path / JSON).read_text())
        tensors = load_file(path / WEIGHTS)
        checksum = _checksum(path / WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise SetupError(f"{damaged}: {error}.") from error
    if not isinstance(described, dict) or described.get("format") not in READABLE:
        found = described.get("format") if isinstance(described, dict) else None
        raise SetupError(
            f"{path} has format {found}, this version reads {READABLE[0]} to {FORMAT}. Load it with the version of sigmma-sc that saved it."
        )
    if described.get("checksum") != checksum:
        raise SetupError(
            f"{damaged}: {WEIGHTS} is not the file that {JSON} describes. Put the right one back, or save the model again."
        )
    return described, tensors


def _checksum(weights: Path) -> str:
    """SHA-256 of a file."""
    with open(weights, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
