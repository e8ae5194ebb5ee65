"""Saved models on the Hugging Face hub: the two files of ``model.save()``, and a model card.

What comes from the hub is JSON and safetensors, and is read as any saved model is: nothing in it can execute.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sigmma_sc._checks import require_name, require_path
from sigmma_sc.encoders.weights import is_offline
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, WriteError
from sigmma_sc.store.model import JSON, WEIGHTS, SavedModel, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD = "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that is the same always; a tag or branch may move."""

TIMEOUT = 10
"""Seconds until a hub that does not answer counts as out of reach."""


def model_folder(path: str | Path, revision: str | None) -> Path:
    """Folder of a saved model: ``path``, or the hub's cache for ``"owner/name"`` where there is no folder ``owner`` here.

    With such a folder, ``path`` is more likely a local one that is misspelt.
    """
    require_path(path, "path")
    if revision is not None:
        require_name(revision, "revision")
    here = Path(path).expanduser()
    if isinstance(path, str) and REPOSITORY.fullmatch(path) and not here.parent.exists():
        return fetch_model(path, revision)
    if revision is not None:
        raise SetupError(
            f"revision={revision!r} is of a model on the hub, and {str(path)!r} is a folder. Leave revision out."
        )
    return here


def without_folders(saved: SavedModel) -> SavedModel:
    """The model with the bare name of a local file of weights: folders of one machine are of no use on another."""
    spec = saved.encoder["spec"]
    if spec is None or not spec.get("weights"):
        return saved
    named = {**spec, "weights": Path(spec["weights"]).name}
    return replace(saved, encoder={**saved.encoder, "spec": named})


def require_repository(repo_id: object) -> None:
    """Raise :class:`SetupError` unless ``repo_id`` names a repository and its owner, as the hub allows."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    problem = "it is not of the form 'owner/name'"
    if isinstance(repo_id, str) and REPOSITORY.fullmatch(repo_id):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            problem = str(error)
        else:
            return
    raise SetupError(f"repo_id={repo_id!r} cannot name a repository: {problem}. Give 'owner/name'.")


def fetch_model(repo_id: str, revision: str | None) -> Path:
    """Folder of a model in the hub's cache; it is downloaded first unless the cache holds this commit.

    :class:`MissingKeyError` if neither the hub nor the cache has it. Other files of the repository are not downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(snapshot_download, repo_id, revision=revision, allow_patterns=[JSON, WEIGHTS], etag_timeout=TIMEOUT)
    if revision is not None and COMMIT.fullmatch(revision):
        with suppress(LocalEntryNotFoundError):
            kept = Path(fetch(local_files_only=True))
            if (kept / JSON).is_file() and (kept / WEIGHTS).is_file():
                return kept
    try:
        folder = fetch(local_files_only=is_offline())
    except Exception as error:
        raise MissingKeyError(
            f"There is no folder {repo_id!r} here, and no model of this name could be fetched from the Hugging Face hub"
            f"{'' if revision is None else f' at revision {revision!r}'}: {type(error).__name__}: {error}. Give the folder of "
            "model.save(). For a private repository, log in with 'hf auth login'."
        ) from error
    return Path(folder)


def require_pushable(repo_id: str, branch: str | None, token: str | None, overwrite: bool) -> None:
    """Check name, access and what the repository holds, before anything is computed.

    :class:`WriteError` without access, :class:`ExistsError` if the repository holds one of our files and ``overwrite`` is not set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    require_repository(repo_id)
    if is_offline():
        raise WriteError(
            f"{repo_id} cannot be written: HF_HUB_OFFLINE is set. Unset it, or save to a folder with model.save()."
        )
    api = HfApi(token=token)
    with _pushing(repo_id):
        api.whoami()
        try:
            there = {
                file.rfilename for file in api.model_info(repo_id, revision=branch, timeout=TIMEOUT).siblings or ()
            }
        except (RepositoryNotFoundError, RevisionNotFoundError):
            there = set()
    if (ours := sorted(there & {JSON, WEIGHTS, CARD})) and not overwrite:
        raise ExistsError(
            f"{repo_id} holds {', '.join(ours)} already. Pass overwrite=True for a new commit with this model, or another name."
        )


def push_model(
    repo_id: str, saved: SavedModel, card: str, *, private: bool, branch: str | None, token: str | None
) -> str:
    """Upload a model and its card in one commit; the commit's hash. A new repository is made if there is none."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch, _pushing(repo_id):
        folder = Path(scratch) / "model"
        write_model(folder, saved)
        (folder / CARD).write_text(card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        message = f"{saved.kind} after {saved.epochs} epochs"
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=branch, commit_message=message)
    return str(commit.oid)


@contextmanager
def _pushing(repo_id: str) -> Iterator[None]:
    """Turn the errors of hub and network into :class:`WriteError`, which names the fix."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        yield
    except (WriteError, ExistsError):
        raise
    except LocalTokenNotFoundError as error:
        raise WriteError(
            f"{repo_id} cannot be written without a login. Run 'hf auth login', or pass token=…."
        ) from error
    except Exception as error:  # a dozen kinds, of huggingface_hub and of two HTTP libraries by its version
        raise WriteError(
            f"{repo_id} cannot be written: {type(error).__name__}: {error}. Check the name, the token and the network, or save "
            "to a folder with model.save()."
        ) from error
