"""A local Hub in memory, with the requests of huggingface_hub for a push and a pull.

It supports models, data sets and Spaces with their variables, commits, tags, private repositories,
one token per user, LFS and regular files, and errors with the headers that the client reads. A
Space is kept under `spaces/owner/name`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """A repository: its commits, newest last, each a mapping of paths to bytes."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)  # of a Space
    host: str = ""  # of a running Space

    def commit(self, message: str, files: dict[str, bytes], deleted: tuple[str, ...] = ()) -> str:
        """Add a commit: the files of the previous one with `files` added and `deleted` removed."""
        before = self.commits[-1][1] if self.commits else {}
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits.append((sha, before | files))
        self.messages.append(message)
        for path in deleted:
            self.commits[-1][1].pop(path, None)
        return sha

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit of a branch, tag or commit id."""
        if revision == "main":
            return self.commits[-1]
        revision = self.tags.get(unquote(revision), unquote(revision))
        return next((one for one in self.commits if one[0] == revision), None)


class LocalHub:
    """The server: `with LocalHub() as hub:` serves on `hub.url` until the block ends."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.users = {"hf_of_me": "me"}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = False  # answer every request with 500
        # By the number of the request: 500; drop, before it is handled; lost, after that; or slow.
        self.faults: dict[int, str] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LocalHub:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until the client confirms its headers

    def __init__(self, hub: LocalHub, *args) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        self.path, self.query = urlsplit(self.path).path, urlsplit(self.path).query
        self.hub.requests.append(f"{self.command} {self.path}")
        self.fault = self.hub.faults.get(len(self.hub.requests) - 1)
        if self.fault == "drop":
            return self._hang_up()
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.fault == "slow":
            time.sleep(0.2)
        if self.hub.broken or self.fault == "500":
            return self._answer(500, {"error": "out of order"})
        self.user = self.hub.users.get(
            self.headers.get("Authorization", "").removeprefix("Bearer ")
        )
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.command in method.split("|"):
                named = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                return answer(self, **named)
        return self._answer(404, {"error": f"no route for {self.command} {self.path}"})

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, content: object = b"", **headers: str) -> None:
        if self.fault == "lost":
            return self._hang_up()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _readable(self, repo: str) -> Repository | None:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and repo.split("/")[-2] != self.user):
            # Like the real Hub, which does not reveal private repositories.
            status = 404 if self.user else 401
            self._answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def create(self) -> None:
        wanted = json.loads(self.body)
        if self.user is None:
            return self._answer(401, {"error": "Unauthorized"})
        owner = wanted.get("organization") or self.user
        if owner != self.user:
            return self._answer(403, {"error": "Forbidden"})
        place = "spaces/" if wanted.get("type") == "space" else ""
        repo = f"{place}{owner}/{wanted['name']}"
        if repo in self.hub.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
        repository = Repository(private=wanted.get("visibility") == "private")
        repository.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[repo] = repository
        return self._answer(200, {"url": f"{self.hub.url}/{repo}"})

    def validate_yaml(self) -> None:
        import yaml

        text = json.loads(self.body)["content"]
        card = yaml.safe_load(text.split("---")[1])
        ids = {name: card.get(name) or [] for name in ("base_model", "datasets", "models")}
        errors = [
            {"message": f'"{name}" must be a Hub id'}
            for name, of in ids.items()
            for one in ([of] if isinstance(of, str) else of)
            if not (isinstance(one, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", one))
        ]
        if not (isinstance(card.get("license"), str) and card["license"] in LICENSES):
            errors.append({"message": '"license" must be one of the list'})
        if json.loads(self.body)["repoType"] == "space" and card.get("sdk") != "gradio":
            errors.append({"message": '"sdk" must be one of the list'})
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def whoami(self) -> None:
        if self.user is None:
            return self._answer(401, {"error": "Invalid user token."})
        return self._answer(200, {"name": self.user, "type": "user", "orgs": []})

    def refs(self, repo: str) -> None:
        if repository := self._readable(repo):
            head = {"name": "main", "ref": "refs/heads/main"}
            tags = [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
                for name, sha in repository.tags.items()
            ]
            head["targetCommit"] = repository.commits[-1][0]
            self._answer(200, {"branches": [head], "converts": [], "tags": tags})

    def tag(self, repo: str, revision: str) -> None:
        if found := self._revision(repo, revision):
            name, tags = json.loads(self.body)["tag"], self.hub.repositories[repo].tags
            if name in tags:
                return self._answer(409, {"error": "Tag reference exists already."})
            tags[name] = found[0]
            self._answer(200, {})

    def variables(self, repo: str) -> None:
        if repository := self._readable(repo):
            if self.command == "POST":
                wanted = json.loads(self.body)
                repository.variables[wanted["key"]] = wanted["value"]
            self._answer(200, {key: {"value": one} for key, one in repository.variables.items()})

    def preupload(self, repo: str, revision: str) -> None:
        repository = self._readable(repo)
        if repository is None:
            return
        there = repository.commits[-1][1]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": _find_oid(file["path"], there.get(file["path"])),
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    def lfs_batch(self, repo: str) -> None:
        objects = [
            one
            if one["oid"] in self.hub.blobs
            else one
            | {
                "actions": {
                    "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify/{one['oid']}"},
                }
            }
            for one in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._answer(422, {"error": "the bytes do not match their hash"})
        self.hub.blobs[oid] = self.body
        return self._answer(200)

    def lfs_verify(self, oid: str) -> None:
        self._answer(200 if oid in self.hub.blobs else 404, {})

    def lfs_get(self, oid: str) -> None:
        self._answer(200, self.hub.blobs[oid])

    def commit(self, repo: str, revision: str) -> None:
        repository = self._readable(repo)
        if repository is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        deleted = tuple(line["value"]["path"] for line in lines if line["key"] == "deletedFile")
        sha = repository.commit(lines[0]["value"]["summary"], files, deleted)
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        self._answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _revision(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._readable(repo)
        if repository is None:
            return None
        found = repository.find(revision)
        if found is None:
            self._answer(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
        return found

    def info(self, repo: str, revision: str | None = None) -> None:
        if found := self._revision(repo, revision or "main"):
            sha, files = found
            self._answer(
                200,
                {
                    "id": repo,
                    "sha": sha,
                    "private": self.hub.repositories[repo].private,
                    "siblings": [{"rfilename": path} for path in files],
                    "cardData": _read_card(files),
                    "host": self.hub.repositories[repo].host,
                    "runtime": {
                        "stage": "RUNNING" if self.hub.repositories[repo].host else "RUNTIME_ERROR"
                    },
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                },
            )

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        if found := self._revision(repo, revision):
            inside = f"{folder}/" if folder else ""
            entries = {}
            for path, data in found[1].items():
                rest = path.removeprefix(inside)
                if not path.startswith(inside):
                    continue
                if "/" in rest and "recursive=true" not in self.query.lower():
                    name = inside + rest.split("/")[0]
                    entries[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
                else:
                    entries[path] = _describe(path, data)
            if entries or not folder:
                return self._answer(200, list(entries.values()))
            self._answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")

    def paths_info(self, repo: str, revision: str) -> None:
        if found := self._revision(repo, revision):
            asked = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            known = {path: _describe(path, data) for path, data in found[1].items()}
            for path in asked:
                if any(one.startswith(f"{path}/") for one in found[1]):
                    known[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            self._answer(200, [known[path] for path in asked if path in known])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._revision(repo, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            return self._answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data = files[path]
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.hub.blobs:
            # Another host name: the client follows redirects on one host and then misses headers.
            return self._answer(
                302,
                Location=f"http://localhost:{self.hub.port}/lfs/{digest}",
                X_Repo_Commit=sha,
                X_Linked_Size=str(len(data)),
                X_Linked_Etag=f'"{digest}"',
                ETag=f'"{digest}"',
            )
        return self._answer(
            200, data, X_Repo_Commit=sha, ETag=f'"{digest}"', Content_Length=str(len(data))
        )


LFS = (".safetensors", ".whl", ".onnx", ".png", ".npz")
LICENSES = {"apache-2.0", "mit", "cc-by-nc-4.0", "other"}


def _find_oid(path: str, data: bytes | None) -> str | None:
    """Return what the Hub knows a file by: of an LFS file SHA-256, of others git's hash."""
    if data is None:
        return None
    if path.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _read_card(files: dict[str, bytes]) -> dict:
    import yaml

    text = files.get("README.md", b"").decode()
    return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}


def _describe(path: str, data: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


_REPO = r"(?P<repo>(?:spaces/)?(?!datasets/|spaces/)[^/]+/[^/]+)"
_API = f"/api/(?:models/|datasets/|(?=spaces/)){_REPO}"
ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("GET", f"{_API}/refs", _Handler.refs),
    ("POST", f"{_API}/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("GET|POST", f"{_API}/variables", _Handler.variables),
    ("POST", f"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    ("GET", "/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_get),
    ("POST", "/lfs-verify/(?P<oid>[0-9a-f]+)", _Handler.lfs_verify),
    ("POST", f"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", f"{_API}", _Handler.info),
    ("GET", f"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (
        "GET",
        f"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?",
        _Handler.tree,
    ),
    (
        "POST",
        f"{_API}/paths-info/(?P<revision>[^/]+)",
        _Handler.paths_info,
    ),
    (
        "GET|HEAD",
        f"/(?:datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]
