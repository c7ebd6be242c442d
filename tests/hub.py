"""A server that answers as the Hugging Face Hub does when files of datasets and models are read and committed."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

REPO, TOKEN = "someone/vectors", "hf_secret_of_mine"
DATASET = f"datasets/{REPO}"
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """A Hub of one dataset and of the models that are made there; commits are named by their number."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, list[Files]] = {DATASET: []}
        self.private: set[str] = set()
        self.large: Files = {}
        self.fails, self.status = "", 503

    def push(self, folder: Path) -> None:
        files = {f"v1/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repos[DATASET].append(files)

    def files_of(self, repo: str, revision: str) -> tuple[str, Files] | None:
        """The commit that a revision is at, and its files."""
        commits = self.repos[repo]
        if revision in ("main", "refs/convert/parquet"):
            return f"{len(commits):040d}", commits[-1] if commits else {}
        known = revision.isdecimal() and len(revision) == 40 and 0 < int(revision) <= len(commits)
        return (revision, commits[int(revision) - 1]) if known else None


class Answer(BaseHTTPRequestHandler):
    """Answers of the Hub's API, as huggingface_hub asks for them."""

    server: Hub
    protocol_version = "HTTP/1.1"
    # a write for each answer, else each waits for the other side's acknowledgement
    wbufsize = -1

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if self.server.fails and self.server.fails in path:
            return self.send(b"", self.server.status)
        form = r"/(?:api/)?((?:datasets/|models/)?[^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?"
        found = re.fullmatch(form, path)
        repo = found[1].removeprefix("models/") if found else ""
        if not found or repo not in self.server.repos:
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if repo in self.server.private and not self.is_known():
            return self.send(b"", 401, {"X-Error-Code": "RepoNotFound"})
        asked, revision, inner = found[2] or "revision", unquote(found[3] or "main"), unquote(found[4] or "")
        at = self.server.files_of(repo, revision)
        if at is None:
            return self.send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = at
        if asked == "revision":
            name = repo.removeprefix("datasets/")
            return self.send_json({"id": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0})
        if asked == "tree":
            entries = list(tree(files, inner, "recursive=true" in self.path.lower()))
            return (
                self.send_json(entries)
                if entries or not inner
                else self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            )
        if inner not in files:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        first, last = 0, len(files[inner]) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        return self.send(files[inner][first : last + 1], 206 if wanted else 200)

    def is_known(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self.body()
        if self.server.fails and self.server.fails in path:
            return self.send(b"", self.server.status)
        if not self.is_known():
            return self.send(b"", 401)
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.send_json({"objects": [self.upload(one) for one in json.loads(body)["objects"]]})
        found = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
        if found is None or found[1] not in self.server.repos:
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if found[2] == "preupload":
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": one["path"], "uploadMode": modes[one["path"].endswith(".safetensors")], "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.send_json({"files": files})
        self.commit(found[1], [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.send(b"", 200)

    def create(self, asked: dict[str, str]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"http://{self.headers['Host']}/{repo}"}
        if repo in self.server.repos:
            return self.send(json.dumps(url).encode(), 409, {"Content-Type": "application/json"})
        self.server.repos[repo] = []
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(repo)
        self.send_json(url)

    def upload(self, one: dict[str, object]) -> dict[str, object]:
        """Where a large file goes."""
        href = f"http://{self.headers['Host']}/large/{one['oid']}"
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": href}}}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        """Takes a commit; large files are named by their checksums, and must have come before."""
        commits = self.server.repos[repo]
        files = dict(commits[-1]) if commits else {}
        for line in lines:
            value, path = line["value"], line["value"].get("path", "")
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.server.large[value["oid"]]
                assert hashlib.sha256(files[path]).hexdigest() == value["oid"]
            elif line["key"] == "deletedFile":
                del files[path]
        commits.append(files)
        oid = f"{len(commits):040d}"
        url = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url})

    def send_json(self, content: object) -> None:
        self.send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def send(self, content: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def tree(files: dict[str, bytes], folder: str, recursive: bool) -> Iterator[dict[str, object]]:
    folders = set()
    for path, content in files.items():
        if folder and not path.startswith(f"{folder}/"):
            continue
        inner = path.removeprefix(f"{folder}/").split("/")
        if len(inner) == 1 or recursive:
            oid = hashlib.sha1(content).hexdigest()
            yield {"type": "file", "path": path, "size": len(content), "oid": oid}
        for depth in range(1, len(inner) if recursive else min(len(inner), 2)):
            folders.add("/".join([*([folder] if folder else []), *inner[:depth]]))
    yield from ({"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders))
