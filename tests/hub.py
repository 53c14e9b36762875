"""A stand-in of the Hub's HTTP API on this computer, as far as huggingface_hub calls it for pushing and fetching."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: one that may do everything, one that may only read."""


@dataclass
class Repo:
    """Commits are whole folders; branches point at commits."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put files on top of a branch."""
        whole = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        sha = hashlib.sha1(repr(sorted(whole.items())).encode() + branch.encode()).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit of a branch, or of its own name."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """Repositories by name, uploaded blobs, and every request made."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.address = ""

    def fetched(self, pattern: str) -> list[str]:
        """Requests for files whose path has that form."""
        return [a for a in self.asked if fnmatch(a.partition(" ")[2], pattern)]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer(status, {"error": code or "refused"}, **({"X-Error-Code": code} if code else {}))

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def take(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body, path = self.rfile.read(length), unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for method, pattern, verb in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                return verb(self, body, **found.groupdict())
        self.refuse(404, "no such route")
        return None

    do_GET = do_HEAD = do_POST = do_PUT = take

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def readable(self, name: str) -> Repo | None:
        """The repository, or a refusal as the Hub words it."""
        repo = self.hub.repos.get(name)
        if self.token and self.token not in (WRITER, READER):
            self.answer(401, {}, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not self.token):
            self.refuse(401 if not self.token else 404, "RepoNotFound")
        elif repo.gated:
            self.refuse(403, "GatedRepo")
        else:
            return repo
        return None

    def writable(self) -> bool:
        if self.token == WRITER:
            return True
        self.refuse(403 if self.token == READER else 401)
        return False

    # ------------------------------------------------------------ pushing

    def create(self, body: bytes) -> None:
        told = json.loads(body)
        if not self.writable():
            return
        name = f"{told['organization']}/{told['name']}"
        there = name in self.hub.repos
        if not there:
            self.hub.repos[name] = Repo(private=told.get("visibility") == "private" or bool(told.get("private")))
            self.hub.repos[name].commit("main", {".gitattributes": b""})
        self.answer(409 if there else 200, {"url": f"{self.hub.address}/{name}"})

    def branch(self, _body: bytes, repo: str, rev: str) -> None:
        if self.writable():
            there = self.hub.repos[repo]
            if rev in there.branches:
                return self.refuse(409)
            there.branches[rev] = there.branches["main"]
            self.answer(200, {})
        return None

    def card(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        good = "tags:" in front and "\t" not in front
        self.answer(200 if good else 400, {"errors": [] if good else [{"message": "no tags"}], "warnings": []})

    def preupload(self, body: bytes, repo: str, rev: str) -> None:
        if self.writable():
            mode = {True: "lfs", False: "regular"}
            files = [f["path"] for f in json.loads(body)["files"]]
            about = {"shouldIgnore": False, "oid": None}
            told = [{"path": p, "uploadMode": mode[p.endswith(".safetensors")], **about} for p in files]
            self.answer(200, {"files": told, "commitOid": self.hub.repos[repo].at(rev)})

    def batch(self, body: bytes, repo: str) -> None:
        def todo(o: dict) -> dict:
            put = {"upload": {"href": f"{self.hub.address}/blobs/{o['oid']}", "header": {}}}
            return {**o, "actions": put} if o["oid"] not in self.hub.blobs else o

        if self.writable():
            self.answer(200, {"transfer": "basic", "objects": [todo(o) for o in json.loads(body)["objects"]]})

    def blob(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400)
        self.hub.blobs[oid] = body
        return self.answer(200)

    def commit(self, body: bytes, repo: str, rev: str) -> None:
        if not self.writable():
            return
        files = {}
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        sha = self.hub.repos[repo].commit(rev, files)
        self.answer(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    # ------------------------------------------------------------ fetching

    def found(self, repo: str, rev: str) -> tuple[str, dict[str, bytes]] | None:
        there = self.readable(repo)
        if there is None:
            return None
        sha = there.at(rev)
        if sha is None:
            self.refuse(404, "RevisionNotFound")
            return None
        return sha, there.commits[sha]

    def info(self, _body: bytes, repo: str, rev: str = "main") -> None:
        if found := self.found(repo, rev):
            sha, files = found
            names = [{"rfilename": n} for n in files]
            about = {"private": self.hub.repos[repo].private, "tags": [], "downloads": 0, "likes": 0}
            self.answer(200, {"id": repo, "modelId": repo, "sha": sha, "siblings": names, **about})

    def tree(self, _body: bytes, repo: str, rev: str) -> None:
        def entry(name: str, data: bytes) -> dict:
            out = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                out["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            return out

        if found := self.found(repo, rev):
            self.answer(200, [entry(n, d) for n, d in found[1].items()])

    def resolve(self, _body: bytes, repo: str, rev: str, path: str) -> None:
        found = self.found(repo, rev)
        if found is None:
            return
        sha, files = found
        if path not in files:
            return self.answer(404, {}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data = files[path]
        mark = hashlib.sha256(data).hexdigest() if path.endswith(".safetensors") else hashlib.sha1(data).hexdigest()
        self.answer(200, data, **{"X-Repo-Commit": sha, "ETag": f'"{mark}"', "X-Linked-Size": str(len(data))})
        return None


REPO, REV = r"(?P<repo>[^/]+/[^/]+)", r"(?P<rev>[^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.card),
    ("POST", f"/api/models/{REPO}/branch/{REV}", Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/{REV}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REV}", Handler.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/blobs/(?P<oid>[0-9a-f]{64})", Handler.blob),
    ("GET", f"/api/models/{REPO}/revision/{REV}", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REV}/?", Handler.tree),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET|HEAD", f"/{REPO}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that listens on this computer."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
