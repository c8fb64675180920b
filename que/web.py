"""The status page: a server that only reads, for whoever sits at this machine (from afar: an ssh tunnel).

A page elsewhere must not read the que through a visitor's browser. So it listens on loopback alone, answers no foreign
Host (DNS rebinding), allows no other origin, and the page runs no script and opens no connection but its own (CSP).
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl

from que.errors import Mistake

HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?", re.IGNORECASE)  # any port: a tunnel has its own
SHOWN = 1 << 16  # bytes of a log
KEPT = 1.0  # seconds for which a look at the state serves every tab
TEXT, JSON, HTML = (f"{kind}; charset=utf-8" for kind in ("text/plain", "application/json", "text/html"))


class Server(ThreadingTCPServer):
    """Bound, not started: `serve_forever()` does, `.url` is where. (An HTTPServer would ask the name server first.)"""

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64  # each request is a connection

    def __init__(self, store: Any, port: int, state_of: Callable[[], dict[str, Any]]):
        self.store, self.state_of = store, state_of
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.headers = _headers(self.page.decode())
        self._lock, self._state, self._until = threading.Lock(), dict[str, Any](), 0.0
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a tab that is closed meanwhile is no error
            super().handle_error(request, client_address)

    def state(self) -> dict[str, Any]:
        """One look for all tabs; a slow one (10,000 jobs) is kept longer, so that looking never fills a core."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._until:
                self._state = self.state_of()
                self._until = begun + max(KEPT, 5 * (time.monotonic() - begun))
            return self._state


def _headers(page: str) -> dict[str, str]:
    """The page's own script and style are allowed by their hashes, and nothing else is."""
    script, style = ("'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
                     for tag in ("script", "style") for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
    policy = (f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    return {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}


class Handler(BaseHTTPRequestHandler):
    server_version, sys_version, timeout = "que", "", 60  # seconds of an idle connection
    server: Server

    def do_GET(self) -> None:
        if not HOST.fullmatch(self.headers.get("Host", "")):
            return self.send_error(403, "this page answers to localhost and 127.0.0.1 only; from afar: an ssh tunnel")
        try:
            answer = self.answer()
        except (OSError, Mistake) as error:  # a full disk, a folder that is away: the page says so, and asks again
            return self.send_error(404 if type(error) is Mistake else 500, str(error))
        self.reply(200, *answer)

    def answer(self) -> tuple[Any, ...]:
        """(Content[, its type[, headers]])"""
        path, _, query = self.path.partition("?")
        asked = dict(parse_qsl(query))
        name, limit = asked.get("id", ""), re.fullmatch("[0-9]{1,9}", asked.get("limit", ""))
        if path == "/":
            return self.server.page, HTML
        if path == "/api/state":
            return shortened(self.server.state(), int(limit[0]) if limit else 0, name),
        if path == "/api/curves":
            run = self._job(name).run
            return curves(Path(run) / "log.jsonl") if run else [],
        if path == "/api/log":
            content, size = self._log(name)
            return content, TEXT, {"X-Log-Size": str(size)}
        raise Mistake("there is nothing here", path, "the page is /")

    def _job(self, name: str) -> Any:
        if not re.fullmatch("j[0-9]{1,18}", name):  # it becomes part of a path
            raise Mistake("there is no such job", name, "an id looks like j3")
        return self.server.store.find(name)

    def _log(self, name: str) -> tuple[bytes, int]:
        path = self.server.store.log(name if name == "daemon" else self._job(name).id)
        if not path.is_file():
            raise Mistake(f"{name} has no log yet")
        return tail(path, SHOWN)

    def reply(self, status: int, content: Any, kind: str = JSON, more: dict[str, str] | None = None) -> None:
        body = _json(content) if kind == JSON else content
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
        for header in {**self.server.headers, **own}.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """http.server's own refusals, too: of a malformed request, and 501 of any method but GET."""
        self.reply(code, {"error": message or "this is no request"})

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line every two seconds."""


def _json(content: Any) -> bytes:
    """NaN, which a diverged run may have, is no JSON: null."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda name: None)).encode()


def shortened(state: dict[str, Any], limit: int, keep: str) -> dict[str, Any]:
    """With a limit: the first jobs of the queue, the newest that ended, all that run, and job `keep`.

    `counts` says how many there are of each state.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for job in state["jobs"]:
        groups.setdefault(job["state"], []).append(job)
    for name in ("old_runs", "fail_runs"):
        groups.get(name, []).sort(key=lambda job: job["ended"] or job["created"], reverse=True)
    return {**state, "counts": {name: len(jobs) for name, jobs in groups.items()},
            "jobs": [job for name, jobs in groups.items() for place, job in enumerate(jobs)
                     if not limit or place < limit or name == "cur_run" or job["id"] == keep]}


def tail(path: Path, size: int) -> tuple[bytes, int]:
    """(The last whole lines of a file that fit in `size` bytes, how large the file is)"""
    with open(path, "rb") as file:
        total = file.seek(0, 2)
        file.seek(max(total - size, 0))
        data = file.read(size)
    return (data.partition(b"\n")[2] or data if total > size else data), total


def curves(path: Path) -> list[dict[str, Any]]:
    """[{"epoch": 1, "train/loss": …}, …] of a log.jsonl."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError):  # cut short by a kill
            rows.append(json.loads(line))
    return [{"epoch": row["epoch"], **{f"{part}/{name}": value for part, values in row.items()
             if isinstance(values, dict) for name, value in values.items() if isinstance(value, int | float)}}
            for row in rows]


def serve(store: Any, port: int, state_of: Callable[[], dict[str, Any]]) -> None:
    """Serve until Ctrl-C; port 0 picks a free one."""
    try:
        server = Server(store, port, state_of)
    except (OSError, OverflowError) as error:
        raise Mistake("the status page cannot listen", f"port {port}: {error}",
                      "give another port, or 0 for any free one") from None
    here = server.url[7:-1]
    print(f"{server.url}  (reads only; Ctrl-C ends it; from afar: ssh -L {here.split(':')[1]}:{here} HOST)", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
