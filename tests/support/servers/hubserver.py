"""A hub of models and datasets on loopback: the hub's file API with chosen misbehaviour."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

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
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        """Dataset (`datasets/org/name`) and commit -> its files."""
        self.branches: dict[tuple[str, str], str] = {}
        """Dataset and branch or tag -> its commit."""
        self.page_size = 1000
        """Entries per page of the listing of a dataset."""
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

    def push(self, dataset: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files as all that a branch of a dataset has; return the commit."""
        repo = f"datasets/{dataset}"
        commit = hashlib.sha1(f"{repo} {len(self.commits)}".encode()).hexdigest()
        self.commits[repo, commit] = dict(files)
        self.branches[repo, branch] = commit
        return commit

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Return the files at a revision of a repository; None if it has no such revision."""
        if not repo.startswith("datasets/"):
            return self.repos[repo] if revision in self.revisions | {self.commit} else None
        return self.commits.get((repo, self.branches.get((repo, revision), revision)))

    def has(self, repo: str) -> bool:
        """Tell whether there is a repository."""
        return repo in self.repos or any(name == repo for name, _ in self.commits)

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
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with hub.lock:
            hub.requests.append((self.command, path, dict(self.headers)))
            waiting = hub.statuses.get(path, [])
            status = waiting.pop(0) if waiting else 0
        if status:
            self._answer(status)
        elif self.server.is_cdn:  # type: ignore[attr-defined]
            self._cdn(hub, path.removeprefix("/cdn/"))
        elif path.startswith("/api/"):
            self._describe(hub, path.removeprefix("/api/").removeprefix("models/"))
        else:
            self._resolve(hub, path.removeprefix("/"))

    do_HEAD = do_POST = do_GET

    def _describe(self, hub: HubServer, path: str) -> None:
        """Answer with a repository and the commit of a revision, or with the tree of a commit."""
        of_tree, of_paths = "/tree/" in path, "/paths-info/" in path
        where = "/tree/" if of_tree else "/paths-info/" if of_paths else "/revision/"
        repo, revision, folder = path.partition(where)[0], *self._behind(where)
        if not self._may(hub, repo):
            return
        files = hub.files(repo, revision or "main")
        if files is None:
            self._answer(404, code="RevisionNotFound")
            return
        headers: dict[str, str] = {}
        commit = hub.branches.get((repo, revision or "main"), revision)
        sha = commit if repo.startswith("datasets/") else hub.commit
        body: Any = {"id": repo.removeprefix("datasets/"), "modelId": repo, "sha": sha}
        if of_paths:
            asked = parse_qs(self.body)["paths"]
            body = [entry for entry in _tree(hub, files) if entry["path"] in asked]
        elif of_tree:
            query = parse_qs(urlsplit(self.path).query)
            is_flat = query.get("recursive", ["false"])[0].lower() == "true"
            below = _tree(hub, files, folder, is_flat=is_flat)
            if folder and not below:
                self._answer(404, code="EntryNotFound")
                return
            first = int(query.get("cursor", ["0"])[0])
            body = below[first : first + hub.page_size]
            if first + hub.page_size < len(below):
                query["cursor"] = [str(first + hub.page_size)]
                url = f"{hub.url}{urlsplit(self.path).path}?{urlencode(query, doseq=True)}"
                headers["Link"] = f'<{url}>; rel="next"'
        instead = hub.lists if of_tree else hub.describes
        data = json.dumps(body).encode() if instead is None else instead
        self._answer(200, data, **headers)

    def _behind(self, where: str) -> tuple[str, str]:
        """Return revision and path; the slashes of a revision are quoted, those of a path not."""
        revision, _, path = urlsplit(self.path).path.partition(where)[2].partition("/")
        return unquote(revision), unquote(path)

    def _resolve(self, hub: HubServer, path: str) -> None:
        repo, commit, name = path.partition("/resolve/")[0], *self._behind("/resolve/")
        if not self._may(hub, repo):
            return
        is_dataset = repo.startswith("datasets/")
        files = hub.files(repo, commit) if is_dataset or commit == hub.commit else None
        if repo in hub.gated:
            self._answer(403, code="GatedRepo")
        elif files is None:
            self._answer(404, code="RevisionNotFound")
        elif name not in files:
            self._answer(404, code="EntryNotFound")
        elif name in hub.large:
            at = f"{hub.branches.get((repo, commit), commit)}/" if is_dataset else ""
            where = f"{repo}/{at}{name}"
            facts = self._facts(commit, hub.sent_instead.get(name, files[name]))
            self._answer(302, Location=f"{hub.cdn_url}/cdn/{quote(where)}", **facts)
        else:
            data = hub.sent_instead.get(name, files[name])
            self._content(hub, name, data, **self._facts(commit, data))

    def _facts(self, commit: str, data: bytes) -> dict[str, str]:
        """Return the headers by which a client knows a file."""
        return {
            "X-Repo-Commit": commit,
            "ETag": hashlib.sha256(data).hexdigest(),
            "X-Linked-Size": str(len(data)),
        }

    def _may(self, hub: HubServer, repo: str) -> bool:
        given = self.headers.get("Authorization")
        if hub.token and given != f"Bearer {hub.token}":
            self._answer(401)
        elif not hub.has(repo):
            self._answer(404, code="RepoNotFound")
        else:
            return True
        return False

    def _cdn(self, hub: HubServer, path: str) -> None:
        repo = next(name for name in [*hub.repos, *(r for r, _ in hub.commits)]
                    if path.startswith(f"{name}/"))  # fmt: skip
        name = path.removeprefix(f"{repo}/")
        if repo.startswith("datasets/"):
            commit, _, name = name.partition("/")
            files = hub.commits[repo, commit]
        else:
            files = hub.repos[repo]
        self._content(hub, name, hub.sent_instead.get(name, files[name]))

    def _content(self, hub: HubServer, name: str, data: bytes, **headers: str) -> None:
        wanted = self.headers.get("Range", "")
        start, end = 0, len(data)
        if wanted and not hub.ignores_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1) if last else end
            if start >= len(data):
                self._answer(416)
                return
        body, is_part = data[start:end], (start, end) != (0, len(data))
        self.send_response(206 if is_part else 200)
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


def _tree(
    hub: HubServer, files: dict[str, bytes], folder: str = "", *, is_flat: bool = True
) -> list[dict[str, Any]]:
    """Return the folders and the files below a folder, as the hub lists them."""
    inside = f"{folder}/" if folder else ""
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    entries = [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(parents)]
    entries += [_entry(hub, name, data) for name, data in files.items()]
    below = [entry for entry in entries if entry["path"].startswith(inside)]
    return below if is_flat else [e for e in below if "/" not in e["path"].removeprefix(inside)]


def _entry(hub: HubServer, name: str, data: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
    if name in hub.large:
        sha256 = hashlib.sha256(data).hexdigest()
        entry |= {"oid": "0" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 134}}
    return entry
