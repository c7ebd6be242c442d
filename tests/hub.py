"""A server that answers as the Hugging Face Hub does when files of a dataset are listed and read."""

import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

REPO, TOKEN = "someone/vectors", "hf_secret_of_mine"


class Hub(ThreadingHTTPServer):
    """A Hub of one dataset: commits are named by their number, and hold files by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits: list[dict[str, bytes]] = []
        self.is_private = False
        self.fails, self.status = "", 503

    def push(self, folder: Path) -> None:
        files = {f"v1/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.commits.append(files)

    def commit_of(self, revision: str) -> str | None:
        if revision in ("main", "refs/convert/parquet"):
            return f"{len(self.commits):040d}"
        known = revision.isdecimal() and len(revision) == 40 and 0 < int(revision) <= len(self.commits)
        return revision if known else None


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
        if self.server.is_private and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.send(b"", 401, {"X-Error-Code": "RepoNotFound"})
        found = re.fullmatch(rf"/(api/)?datasets/{REPO}(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        if not found:
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        asked, revision, inner = found[2] or "revision", unquote(found[3] or "main"), unquote(found[4] or "")
        commit = self.server.commit_of(revision)
        if commit is None:
            return self.send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        files = self.server.commits[int(commit) - 1]
        if asked == "revision":
            return self.send_json({"id": REPO, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0})
        if asked == "tree":
            entries = list(tree(files, inner, "recursive=true" in self.path.lower()))
            return self.send_json(entries) if entries else self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        if inner not in files:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        first, last = 0, len(files[inner]) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        return self.send(files[inner][first : last + 1], 206 if wanted else 200)

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
