"""Models on a hub that this machine serves itself: what is uploaded, what is downloaded, and what is refused before."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError, WriteError
from sigmma_sc.store.hub import model_folder, without_folders

OURS = ["README.md", "model.json", "weights.safetensors"]


class Repository:
    """Commits of one repository: files by commit, and the commit of each branch."""

    def __init__(self, private):
        self.private = private
        self.commits = {"0" * 40: {}}
        self.branches = {"main": "0" * 40}

    def at(self, revision):
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, branch, files):
        commit = hashlib.sha1(json.dumps(sorted(files)).encode() + self.branches[branch].encode()).hexdigest()
        self.commits[commit] = {**self.commits[self.branches[branch]], **files}
        self.branches[branch] = commit
        return commit


class Hub(BaseHTTPRequestHandler):
    """What of the hub's interface an upload and a download of small files need."""

    repositories: dict[str, Repository] = {}
    asked: list[str] = []

    def do_GET(self):
        self._answer(None)

    do_HEAD = do_GET

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

    def _answer(self, body):
        self.asked.append(f"{self.command} {self.path}")
        path = unquote(self.path.split("?")[0])
        if self.headers.get("Authorization") != "Bearer right":
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/whoami-v2":
            self._send(200, {"name": "lab"})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'lab'}/{asked['name']}"
            known = repo in self.repositories
            self.repositories.setdefault(repo, Repository(asked.get("private", asked.get("visibility") == "private")))
            self._send(409 if known else 200, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo})
        elif found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|preupload|commit|branch|tree)/(\w+))?", path):
            self._repository(body, *found.groups())
        elif found := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            repo, revision, name = found.groups()
            commit, files = self.repositories[repo].at(revision)
            etag = hashlib.sha1(files[name]).hexdigest()
            self._send(200, files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
        else:
            pytest.fail(f"not served: {self.path}")

    def _repository(self, body, repo, what, revision):
        if repo not in self.repositories:
            self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
            return
        repository = self.repositories[repo]
        found = repository.at(revision or "main")
        if what == "branch":
            repository.branches[revision] = repository.branches["main"]
            self._send(200, {})
        elif found is None:
            self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        elif what == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif what == "commit":
            lines = [json.loads(line) for line in body.decode().splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            commit = repository.commit(revision, {file["path"]: base64.b64decode(file["content"]) for file in sent})
            self._send(
                200,
                {
                    "commitOid": commit,
                    "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{commit}",
                    "hookOutput": "",
                },
            )
        elif what == "tree":
            _, files = found
            entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "1"} for name in files]
            self._send(200, entries)
        else:
            commit, files = found
            self._send(200, {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def _send(self, status, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": len(body), "Content-Type": "application/json"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of our own on this machine with a login, and an empty cache."""
    monkeypatch.setattr(Hub, "repositories", {})
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for key, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }.items():
        for module in ("constants", "file_download", "hf_api", "_snapshot_download"):  # copies of some versions
            monkeypatch.setattr(f"huggingface_hub.{module}.{key}", value, raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_there_and_back(hub, aligned, monkeypatch):
    commit = aligned.push_to_hub("lab/pancreas", tissue="A simulated section.", data_licence="CC0")
    repository = hub.repositories["lab/pancreas"]
    assert repository.private
    assert repository.at(commit) == repository.at("main")
    assert sorted(repository.at(commit)[1]) == OURS
    loaded = SIGMMA.load("lab/pancreas", aligned.sdata, revision=commit)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(n_offsets=1), aligned.get_latent_representation(n_offsets=1)
    )
    assert model_folder("lab/pancreas", None).name == commit
    hub.asked.clear()
    assert model_folder("lab/pancreas", commit).name == commit  # a commit is the same always
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder("lab/pancreas", None).name == commit
    assert hub.asked == []


def test_what_is_there_is_kept(hub, aligned):
    first = aligned.push_to_hub("lab/pancreas")
    with pytest.raises(ExistsError, match="lab/pancreas holds README.md, model.json, weights.safetensors already"):
        aligned.push_to_hub("lab/pancreas")
    second = aligned.push_to_hub("lab/pancreas", overwrite=True)
    assert first != second
    assert hub.repositories["lab/pancreas"].at("main")[0] == second
    assert model_folder("lab/pancreas", first).name == first
    third = aligned.push_to_hub("lab/pancreas", branch="trial", overwrite=True)
    assert hub.repositories["lab/pancreas"].branches == {"main": second, "trial": third}


def test_refused_before_anything_is_computed(hub, aligned, monkeypatch):
    monkeypatch.setattr(SIGMMA, "embed_split", lambda *args, **kwargs: pytest.fail("computed"))
    monkeypatch.setattr(SIGMMA, "_saved", lambda *args: pytest.fail("computed"))
    for name in ("pancreas", "lab/pan/creas", "", 3, None, "lab/-x", "lab/x.git"):
        with pytest.raises(SetupError, match="repo_id="):
            aligned.push_to_hub(name)
    with pytest.raises(SetupError, match="licence=3 must be a name"):
        aligned.push_to_hub("lab/pancreas", licence=3)
    assert hub.asked == []
    with pytest.raises(WriteError, match="lab/pancreas cannot be written.*Check the name, the token"):
        aligned.push_to_hub("lab/pancreas", token="wrong")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WriteError, match=r"HF_HUB_OFFLINE is set\. Unset it"):
        aligned.push_to_hub("lab/pancreas")
    assert hub.repositories == {}


def test_no_such_model(hub, aligned, tmp_path):
    with pytest.raises(MissingKeyError, match=r"no folder 'lab/none' here, and no model .* at revision 'v2'"):
        SIGMMA.load("lab/none", aligned.sdata, revision="v2")
    asked = len(hub.asked)
    (tmp_path / "results").mkdir()
    with pytest.raises(MissingKeyError, match="results/modle holds no saved model"):
        SIGMMA.load("results/modle", aligned.sdata)
    with pytest.raises(SetupError, match="'results/modle' is a folder. Leave revision out"):
        SIGMMA.load("results/modle", aligned.sdata, revision="v2")
    assert len(hub.asked) == asked


def test_a_repository_of_something_else(hub, aligned):
    hub.repositories["lab/other"] = Repository(private=False)
    hub.repositories["lab/other"].commit("main", {"pytorch_model.bin": b"x"})
    with pytest.raises(MissingKeyError, match="holds no saved model"):
        SIGMMA.load("lab/other", aligned.sdata)
    assert not any("pytorch_model.bin" in line for line in hub.asked)


def test_no_folder_of_this_machine_is_told(aligned):
    saved = aligned._saved()
    spec = {"kind": "timm", "arch": "test_vit", "weights": "/home/someone/weights/vit.safetensors"}
    local = without_folders(replace(saved, encoder={**saved.encoder, "spec": spec}))
    assert local.encoder["spec"] == {**spec, "weights": "vit.safetensors"}
    assert without_folders(saved) is saved


def test_the_card(hub, aligned):
    commit = aligned.push_to_hub("lab/pancreas", tissue="From *elsewhere*.", licence="mit", data_licence="CC BY 4.0")
    card = hub.repositories["lab/pancreas"].at(commit)[1]["README.md"].decode()
    _, metadata, text = card.split("---\n", 2)
    assert "license: mit" in metadata
    assert "library_name: sigmma-sc" in metadata
    assert "From *elsewhere*." in text
    assert "- tissue: CC BY 4.0" in text
    assert "- image encoder `stain-stats`: " in text
    (slide,) = aligned.resolve()
    roles = aligned.data.roles.of(slide)
    counts = [int((roles == role).sum()) for role in ("train", "val", "test")]
    assert f"| {slide.name} | {' | '.join(map(str, counts))} | {', '.join(slide.samples)} | {len(slide.rows)} |" in text
    table = aligned.evaluate_retrieval().query("scale == 'all'")
    for _, row in table.iterrows():
        assert re.search(rf"\| {row['direction']} \| 5 % \| {row['recall@5%']:.3f} \(", text)
