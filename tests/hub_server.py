"""A Hugging Face Hub on this machine: the few endpoints that fetching weights needs.

It answers what the Hub answers: model information, the tree of a commit, and files with ETag,
X-Repo-Commit and byte ranges; a missing, private or gated repository by the same statuses and
X-Error-Code. It can break a connection in the middle of a file.
"""

import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse


@dataclasses.dataclass
class Repo:
    """One repository: revisions by name, files by commit."""

    revisions: dict[str, str] = dataclasses.field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    token: str | None = None
    gated: bool = False


def commit(files: dict[str, bytes]) -> str:
    """A commit's name: forty hexadecimal digits."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Hub:
    """The server; use it as a context.

    Attributes: url, repos, requests (method, path, Range header), break_after (bytes of a file
    after which the next connection ends, once), status (answered to everything).
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.break_after: int | None = None
        self.status: int | None = None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve_this_process(self, monkeypatch, folder) -> None:
        """Points the Hub's library to this server, with a cache in `folder` and no token."""
        from huggingface_hub import constants

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(folder / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def push(self, name: str, files: dict[str, bytes], revision: str = "main", **kind) -> str:
        """Adds a commit to a repository and lets a branch or tag point to it."""
        repo = self.repos.setdefault(name, Repo(**kind))
        sha = commit(files)
        repo.commits[sha] = files
        repo.revisions[revision] = sha
        return sha

    def fetched(self) -> list[str]:
        """Paths of the files that were sent, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.requests if method == "GET" and "/resolve/" in path
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        """Nothing."""

    def do_HEAD(self):
        """Headers of a file."""
        self._answer()

    def do_GET(self):
        """Information, a tree or a file."""
        self._answer()

    def _answer(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            return self._fail(self.hub.status)
        steps = path.strip("/").split("/")
        api = steps[:2] == ["api", "models"]
        owner, name, *rest = steps[2:] if api else steps
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None:
            return self._fail(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo.gated and sent != repo.token:
            return self._fail(403 if sent else 401, "GatedRepo")
        if repo.token and sent != repo.token:
            return self._fail(401 if not sent else 403, "RepoNotFound" if not sent else None)
        kind, revision, *rest = rest or ["revision", "main"]
        sha = repo.revisions.get(revision, revision)
        if sha not in repo.commits:
            return self._fail(404, "RevisionNotFound")
        files = repo.commits[sha]
        if not api:
            return self._file(files, sha, "/".join(rest))
        if kind == "tree":
            return self._json([
                {"type": "file", "path": f, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                for f, x in files.items()
            ])
        return self._json({
            "_id": "0", "id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": sha,
            "private": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [{"rfilename": f} for f in files],
        })

    def _file(self, files, sha, path):
        if path not in files:
            return self._fail(404, "EntryNotFound")
        data, start = files[path], 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = len(data)
        if self.hub.break_after is not None:
            end, self.hub.break_after = start + self.hub.break_after, None
        self.wfile.write(data[start:end])
        if end < len(data):
            self.close_connection = True

    def _json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status, code=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
