"""Models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch

from sigmma_sc._files import Saved
from sigmma_sc._schema import require_schema
from sigmma_sc.config import Config
from sigmma_sc.encoders.fingerprint import identity_of, mismatch
from sigmma_sc.errors import EncoderError, SetupError
from sigmma_sc.features.data import BEFORE, DataState
from sigmma_sc.infer.reference import PREFIX, Reference, reference_tensors, restore_reference
from sigmma_sc.niches.prototypes import NichePrototypes
from sigmma_sc.tissue.setup import Setup
from sigmma_sc.train.history import HistoryJson, history_from_json, history_to_json

if TYPE_CHECKING:
    import pandas as pd

    from sigmma_sc.encoders.encoder import ImageEncoder

FORMAT = 11
OLDEST = 10
"""Oldest format that is read. It has no ``even_lattices``, see :data:`~sigmma_sc.features.data.BEFORE`."""
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
FOLDER = Saved(JSON, WEIGHTS, FORMAT, "model", "model.save()", OLDEST)
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


def write_model(path: Path, saved: SavedModel) -> None:
    """Write a model; a crash leaves the old one or the new one."""
    tensors = {f"towers.{name}": value.detach().cpu().contiguous() for name, value in saved.towers.items()}
    described = {
        **{name: getattr(saved, name) for name in PLAIN},
        "setup": saved.setup.to_json(),
        "data": _without_arrays(saved.data, "data", tensors),
        "history": history_to_json(saved.history),
        "reference": None,
        "niches": None if saved.niches is None else _without_arrays(saved.niches.to_dict(), "niches", tensors),
    }
    if saved.reference is not None:
        described["reference"] = {"genes": saved.reference.genes, "library": saved.reference.library}
        tensors |= reference_tensors(saved.reference)
    FOLDER.write(path, described, tensors)


def read_model(path: str | Path, kind: str) -> SavedModel:
    """Read a model of the class ``kind``, or raise :class:`SetupError`; neither of its files can execute anything."""
    described, tensors = FOLDER.read(Path(path).expanduser())
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
    described, _ = FOLDER.read(path.expanduser())
    return Setup.from_json(described.get("setup"), f"{path}: setup in {JSON}")


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
