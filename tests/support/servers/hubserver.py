"""A model hub on loopback: the hub's file API with chosen misbehaviour."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test-token-that-stays-secret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class HubServer:
    """Repositories by name: files by path, at one commit, with branches and tags that mean it.

    Files whose names are in `large` are kept apart, as the hub keeps them: their content comes from
    another server, to which requests are redirected.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.revisions = {"main", "v1.0", "refs/pr/1"}
        self.large: set[str] = set()
        self.token = ""
        """Requests need it, if it is set."""
        self.gated: set[str] = set()
        self.sent_instead: dict[str, bytes] = {}
        """File -> other content than the hub says."""
        self.cuts: dict[str, list[int]] = {}
        """File -> after how many bytes each answer is cut off, one after the other."""
        self.ignores_range = False
        self.describes: bytes | None = None
        """What it says of every repository instead; None: the truth."""
        self.lists: bytes | None = None
        """What it says of the files of every repository instead; None: the truth."""
        self.statuses: dict[str, list[int]] = {}
        """Path -> statuses of its first answers."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers of each request to the hub; paths elsewhere begin `/cdn`."""
        self._servers = [_Threads(self, is_cdn=False), _Threads(self, is_cdn=True)]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.01,))
                         for s in self._servers]  # fmt: skip
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    @property
    def downloads(self) -> Counter[str]:
        """How often the content of each file was asked for."""
        with self.lock:
            paths = [path for method, path, _ in self.requests if method == "GET"]
        paths = [
            path.replace(f"/resolve/{self.commit}/", "/").removeprefix("/cdn") for path in paths
        ]
        return Counter(
            path.removeprefix(f"/{repo}/")
            for repo in self.repos
            for path in paths
            if path.startswith(f"/{repo}/")
        )

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Threads(ThreadingHTTPServer):
    def __init__(self, hub: HubServer, *, is_cdn: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.is_cdn = hub, is_cdn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        with hub.lock:
            hub.requests.append((self.command, path, dict(self.headers)))
            waiting = hub.statuses.get(path, [])
            status = waiting.pop(0) if waiting else 0
        if status:
            self._answer(status)
        elif self.server.is_cdn:  # type: ignore[attr-defined]
            self._content(hub, path.removeprefix("/cdn/"))
        elif path.startswith("/api/models/"):
            self._describe(hub, path.removeprefix("/api/models/"))
        else:
            self._resolve(hub, path.removeprefix("/"))

    do_HEAD = do_GET

    def _describe(self, hub: HubServer, path: str) -> None:
        """Answer with a repository and the commit of a revision, or with the tree of a commit."""
        of_tree = "/tree/" in path
        repo, _, revision = path.partition("/tree/" if of_tree else "/revision/")
        if not self._may(hub, repo):
            return
        if revision and revision not in hub.revisions | {hub.commit}:
            self._answer(404, code="RevisionNotFound")
            return
        body: Any = {"id": repo, "modelId": repo, "sha": hub.commit}
        if of_tree:
            body = _tree(hub, repo)
        instead = hub.lists if of_tree else hub.describes
        self._answer(200, json.dumps(body).encode() if instead is None else instead)

    def _resolve(self, hub: HubServer, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        if not self._may(hub, repo):
            return
        if repo in hub.gated:
            self._answer(403, code="GatedRepo")
        elif commit != hub.commit:
            self._answer(404, code="RevisionNotFound")
        elif name not in hub.repos[repo]:
            self._answer(404, code="EntryNotFound")
        elif name in hub.large:
            self._answer(302, Location=f"{hub.cdn_url}/cdn/{repo}/{name}", **self._facts(hub, path))
        else:
            self._content(hub, f"{repo}/{name}", **self._facts(hub, path))

    def _facts(self, hub: HubServer, path: str) -> dict[str, str]:
        """Return the headers by which a client knows a file."""
        repo, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        data = hub.sent_instead.get(name, hub.repos[repo][name])
        return {
            "X-Repo-Commit": commit,
            "ETag": hashlib.sha256(data).hexdigest(),
            "X-Linked-Size": str(len(data)),
        }

    def _may(self, hub: HubServer, repo: str) -> bool:
        given = self.headers.get("Authorization")
        if hub.token and given != f"Bearer {hub.token}":
            self._answer(401)
        elif repo not in hub.repos:
            self._answer(404, code="RepoNotFound")
        else:
            return True
        return False

    def _content(self, hub: HubServer, path: str, **headers: str) -> None:
        repo = next(name for name in hub.repos if path.startswith(f"{name}/"))
        name = path.removeprefix(f"{repo}/")
        data, start = hub.sent_instead.get(name, hub.repos[repo][name]), 0
        wanted = self.headers.get("Range", "")
        if wanted and not hub.ignores_range:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = data[start:]
        self.send_response(206 if start else 200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = hub.cuts.get(name, [])
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _answer(self, status: int, body: bytes = b"", code: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _tree(hub: HubServer, repo: str) -> list[dict[str, Any]]:
    """Return the folders and the files of a repository, as the hub lists them."""
    folders = {name.rpartition("/")[0] for name in hub.repos[repo]} - {""}
    entries = [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in folders]
    return entries + [_entry(hub, name, data) for name, data in hub.repos[repo].items()]


def _entry(hub: HubServer, name: str, data: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
    if name in hub.large:
        sha256 = hashlib.sha256(data).hexdigest()
        entry |= {"oid": "0" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 134}}
    return entry
