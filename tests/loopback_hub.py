"""A Hub on the loopback interface that speaks the real protocol to the real client, with the standard library alone.

It has users with tokens, private and gated repositories, branches, tags, collections, files in Git and in LFS, ranges,
and failures on demand: a status, or a connection that breaks in the middle of a body.

    with LoopbackHub() as hub:
        hub.users["token"] = "me"
        hub.fail("POST", "/commit/", 503, times=2)
        ...                                          # a client with HF_ENDPOINT=hub.url
        assert hub.files("me/pack")["README.md"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml


LFS_ENDINGS = (".safetensors", ".bin")
REAL_CLIENT = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
"""For modules whose tests upload: the client uploads LFS files in a way that its HTTP library will drop."""
NOW = "2025-01-01T00:00:00.000Z"


@dataclass
class Repository:
    """Commits (sha -> files), and what names them; `main` begins with a commit as on the Hub."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def commit(self, branch: str, files: Mapping[str, bytes], message: str) -> str:
        parent = self.branches.get(branch, "")
        digest = hashlib.sha1(f"{parent} {message} {len(self.commits)}".encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match instead of an answer."""

    method: str
    path: str
    times: int
    status: int | None
    after: int


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **extra}


class LoopbackHub:
    """The server. Its state is plain data: tests read and change it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.users: dict[str, str] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, status: int, times: int = 1) -> None:
        """Answer the next requests with this status."""
        self.faults.append(Fault(method, path, times, status, 0))

    def cut(self, method: str, path: str, times: int = 1, after: int = 100) -> None:
        """Break the connection: of a GET after so many bytes of the answer, of others before an answer."""
        self.faults.append(Fault(method, path, times, None, after))

    def upload(self, id: str, files: Mapping[str, bytes] | Path, branch: str = "main", message: str = "upload") -> str:
        """Put files into a repository, beside what is there, without a client; the commit."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(id, Repository())
        return repository.commit(branch, {**self.files(id, branch), **files}, message)

    def files(self, id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[id]
        return repository.commits[repository.resolve(revision) or ""]

    def asked(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        # a slash inside a branch or path comes as %2F and stays one part
        self.route = [unquote(part) for part in parts.path.strip("/").split("/")]
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.content = self._body()
        self.cut_after: int | None = None
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {parts.path}")
            try:
                if self._failed(parts.path):
                    return
                answer = self._answer()
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
                headers["X-Error-Message"] = str(refusal)
                self._send(refusal.status, json.dumps(refusal.body).encode(), headers)
                return
        if answer is not None:
            self._send(200, json.dumps(answer).encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _failed(self, path: str) -> bool:
        fault = next(
            (f for f in self.hub.faults if f.times and f.method == self.command and re.search(f.path, path)), None
        )
        if fault is None:
            return False
        fault.times -= 1
        if fault.status is not None:
            raise Refusal(fault.status, "injected failure")
        if self.command == "GET":
            self.cut_after = fault.after
            return False
        self.close_connection = True
        return True

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and len(body) > self.cut_after:
            self.wfile.write(body[: self.cut_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    # ---- who asks, and for what

    @property
    def user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(given)

    def _authenticated(self) -> str:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    def _repository(self, id: str, write: bool = False, content: bool = False) -> Repository:
        repository, owner = self.hub.repositories.get(id), id.split("/")[0]
        if repository is None or (repository.private and self.user != owner):
            raise Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if content and repository.gated and self.user != owner:
            raise Refusal(403, f"Access to model {id} is restricted.", "GatedRepo")
        if write and self._authenticated() != owner:
            raise Refusal(403, "Forbidden: you have no write access")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    # ---- routes

    def _answer(self) -> Any:
        match [self.command, *self.route]:
            case ["GET", "api", "whoami-v2"]:
                return {"type": "user", "name": self._authenticated(), "orgs": []}
            case ["POST", "api", "repos", "create"]:
                return self._create()
            case ["POST", "api", "validate-yaml"]:
                return _validated(self.json["content"])
            case [method, "api", "collections", *rest]:
                return self._collections(method, rest)
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                return self._lfs_batch(f"{owner}/{name.removesuffix('.git')}")
            case ["PUT", "lfs", oid]:
                self.hub.lfs[oid] = self.content
                return {}
            case ["GET" | "HEAD", owner, name, "resolve", revision, *path]:
                return self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case [method, "api", "models", owner, name, *rest]:
                return self._model(method, f"{owner}/{name}", rest)
        raise Refusal(404, f"No route {self.command} {self.path}")

    def _model(self, method: str, id: str, rest: list[str]) -> Any:
        repository = self._repository(id, write=method == "POST")
        match [method, *rest]:
            case ["GET"]:
                return self._info(id, repository, "main")
            case ["GET", "revision", revision]:
                return self._info(id, repository, revision)
            case ["GET", "tree", revision, *path]:
                return self._tree(repository.commits[self._commit_of(repository, revision)], "/".join(path))
            case ["GET", "refs"]:
                return {
                    "branches": _refs("heads", repository.branches),
                    "tags": _refs("tags", repository.tags),
                    "converts": [],
                }
            case ["POST", "preupload", revision]:
                files = repository.commits[self._commit_of(repository, revision)]
                return {"files": [_upload_mode(file["path"], files) for file in self.json["files"]]}
            case ["POST", "commit", revision]:
                return self._commit(id, repository, revision)
            case ["POST", "tag", revision]:
                return _name(repository.tags, self.json["tag"], self._commit_of(repository, revision))
            case ["POST", "branch", branch]:
                start = self._commit_of(repository, self.json.get("startingPoint", "main"))
                return _name(repository.branches, branch, start)
        raise Refusal(404, f"No route {self.command} {self.path}")

    def _create(self) -> Any:
        user, wanted = self._authenticated(), self.json
        id = f"{wanted['organization'] or user}/{wanted['name']}"
        if id.split("/")[0] != user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {id.split('/')[0]}")
        answer = {"url": f"{self.hub.url}/{id}", "name": id}
        if id in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", **answer)
        self.hub.repositories[id] = Repository(private=wanted.get("visibility") == "private")
        return answer

    def _info(self, id: str, repository: Repository, revision: str) -> Any:
        sha = self._commit_of(repository, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in sorted(repository.commits[sha])]
        if "blobs" in self.query:
            for sibling in siblings:
                content = repository.commits[sha][sibling["rfilename"]]
                sibling |= {"size": len(content), "blobId": _git_oid(content)}
                if sibling["rfilename"].endswith(LFS_ENDINGS):
                    oid = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"sha256": oid, "size": len(content), "pointerSize": 134}
        return {"id": id, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings}

    def _tree(self, files: Mapping[str, bytes], under: str) -> Any:
        inside = {name: data for name, data in files.items() if not under or name.startswith(f"{under}/")}
        if under and not inside:
            raise Refusal(404, f"{under} does not exist", "EntryNotFound")
        entries = {}
        for name, content in sorted(inside.items()):
            first, *more = name[len(under) + 1 if under else 0 :].split("/")
            if more and self.query.get("recursive", "").lower() != "true":
                path = f"{under}/{first}" if under else first
                entries[path] = {"type": "directory", "path": path, "oid": _git_oid(path.encode()), "size": 0}
                continue
            entries[name] = {"type": "file", "path": name, "oid": _git_oid(content), "size": len(content)}
            if name.endswith(LFS_ENDINGS):
                oid = hashlib.sha256(content).hexdigest()
                entries[name]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return list(entries.values())

    def _commit(self, id: str, repository: Repository, branch: str) -> Any:
        if branch not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.content.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.branches[branch]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[repository.branches[branch]])
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refusal(400, f"{path}: no LFS object {value['oid']}")
                files[path] = self.hub.lfs[value["oid"]]
            elif files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = repository.commit(branch, files, header["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{id}/commit/{sha}"}

    def _lfs_batch(self, id: str) -> Any:
        self._repository(id, write=True)
        objects = []
        for wanted in self.json["objects"]:
            entry = dict(wanted)
            if wanted["oid"] not in self.hub.lfs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _resolve(self, id: str, revision: str, path: str) -> None:
        repository = self._repository(id, content=True)
        sha = self._commit_of(repository, revision)
        if path not in repository.commits[sha]:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        content = repository.commits[sha][path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LFS_ENDINGS) else _git_oid(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            self._send(206, content[int(start[1]) :], headers)
        else:
            self._send(200, content, headers)

    def _collections(self, method: str, rest: list[str]) -> Any:
        match [method, *rest]:
            case ["POST"]:
                return self._create_collection()
            case ["GET", owner, name]:
                return self._collection(f"{owner}/{name}")
            case ["POST", owner, name, "items"]:
                return self._add_item(self._collection(f"{owner}/{name}"))
        raise Refusal(404, f"No route {self.command} {self.path}")

    def _create_collection(self) -> Any:
        wanted = self.json
        slug = f"{wanted['namespace']}/{re.sub('[^a-z0-9]+', '-', wanted['title'].lower())}-0123456789abcdef01234567"
        if self._authenticated() != wanted["namespace"]:
            raise Refusal(403, "Forbidden")
        if slug in self.hub.collections:
            raise Refusal(409, "Collection exists", slug=slug)
        self.hub.collections[slug] = {
            "slug": slug,
            "title": wanted["title"],
            "owner": {"name": wanted["namespace"]},
            "items": [],
            "lastUpdated": NOW,
            "position": 0,
            "private": wanted["private"],
            "theme": "green",
            "upvotes": 0,
        }
        return self.hub.collections[slug]

    def _collection(self, slug: str) -> dict[str, Any]:
        if slug not in self.hub.collections:
            raise Refusal(404, f"Collection not found: {slug}")
        return self.hub.collections[slug]

    def _add_item(self, collection: dict[str, Any]) -> Any:
        item = self.json["item"]
        if any(there["id"] == item["id"] for there in collection["items"]):
            raise Refusal(409, "Item already in collection")
        collection["items"].append({**item, "_id": str(len(collection["items"])), "position": 0})
        return collection


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _upload_mode(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """How a file is to be uploaded, and which content the Hub has, so that unchanged files are left out."""
    lfs = path.endswith(LFS_ENDINGS)
    there = files.get(path)
    oid = None if there is None else hashlib.sha256(there).hexdigest() if lfs else _git_oid(there)
    return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}


def _validated(card: str) -> Any:
    """The Hub's check of a card: metadata there, and no path where the base's id belongs."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    metadata = yaml.safe_load(match[1]) if match else None
    if not metadata:
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    bases = metadata.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            message = f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
            raise Refusal(400, message, errors=[{"message": message}])
    return {"errors": [], "warnings": []}


def _refs(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]


def _name(names: dict[str, str], name: str, sha: str) -> Any:
    if name in names:
        raise Refusal(409, f"Reference already exists: {name}")
    names[name] = sha
    return {}


@pytest.fixture(name="hub")
def loopback_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that the client of this process talks to, as the user `me`, with a cache of its own and no waiting.

    The client reads its settings when it is imported, but looks these up at every call. What transformers does with
    them at import is out of reach: that is tested in a process of its own.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    with LoopbackHub() as hub:
        hub.users |= {"my-token": "me", "your-token": "you"}
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("hf_edit.hub.client.WAITS", (0.0, 0.0, 0.0))
        monkeypatch.setenv("HF_TOKEN", "my-token")
        disable_progress_bars()
        yield hub
        enable_progress_bars()
