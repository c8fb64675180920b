"""The status page: a server that only reads, for whoever sits at this machine (from afar: an ssh tunnel).

A page elsewhere must not read the que through a visitor's browser. So it listens on loopback alone, answers no foreign
Host (DNS rebinding), allows no other origin, and the page runs no script and opens no connection but its own (CSP).
"""

import base64
import hashlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs

from que.errors import Mistake, Storage

LOOPBACK = ("127.0.0.1", "localhost")
HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?", re.IGNORECASE)  # any port: a tunnel has its own
MOST_LOG, MOST_EPOCHS = 1 << 20, 500
KEPT = 1.0  # seconds for which a look at the state serves every tab
TEXT, JSON, HTML = (f"{kind}; charset=utf-8" for kind in ("text/plain", "application/json", "text/html"))


class Refusal(Exception):
    """(HTTP status, a sentence)"""


class Server(ThreadingHTTPServer):
    """Bound, not started: `serve_forever()` does, `.url` is where."""

    daemon_threads = True

    def __init__(self, store: Any, port: int, state_of: Callable[[], dict[str, Any]], host: str = LOOPBACK[0]):
        self.store, self.state_of = store, state_of
        self.page = Path(__file__).with_name("page.html").read_bytes()
        self.headers = _headers(self.page.decode("utf-8"))
        self._lock, self._state, self._until = threading.Lock(), dict[str, Any](), -math.inf
        super().__init__((host, port), Handler)
        self.url = f"http://{host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Without HTTPServer's question to the name server, which may take seconds."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a tab that is closed meanwhile is no error
            super().handle_error(request, client_address)

    def state(self) -> dict[str, Any]:
        """One look for all tabs; a slow one (10,000 jobs) is kept longer, so that looking never fills a core."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._until:
                self._state = self.state_of()
                ended = time.monotonic()
                self._until = ended + max(KEPT, 4 * (ended - begun))
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
    protocol_version, server_version, sys_version = "HTTP/1.1", "que", ""
    timeout = 60  # of an idle connection
    server: Server

    def do_GET(self) -> None:
        try:
            self.reply(200, *self.answer())
        except Refusal as refusal:
            self.refuse(*refusal.args)
        except ConnectionError:
            raise
        except (OSError, Mistake) as error:  # a full disk, a folder that is away: the page says so, and asks again
            self.refuse(500, str(error))

    do_HEAD = do_GET

    def answer(self) -> tuple[Any, ...]:
        """(Content type, body[, headers])"""
        if not HOST.fullmatch(self.headers.get("Host", "")):
            raise Refusal(403, "this page answers to localhost and 127.0.0.1 only; from afar: an ssh tunnel")
        path, _, query = self.path.partition("?")
        asked = {key: values[-1] for key, values in parse_qs(query).items()}
        name = asked.get("id", "")
        if path == "/":
            return HTML, self.server.page
        if path == "/api/state":
            return JSON, _json(shortened(self.server.state(), _number(asked.get("limit", "0")), name))
        if path == "/api/log":
            data, size = tail(self._log(name), min(_number(asked.get("bytes", "65536")), MOST_LOG))
            return TEXT, data, {"X-Log-Size": str(size)}
        if path == "/api/curves":
            run = self._job(name).run
            return JSON, _json(curves(Path(run) / "log.jsonl") if run else [])
        raise Refusal(404, "there is nothing here; the page is /")

    def _job(self, name: str) -> Any:
        if not re.fullmatch("j[0-9]{1,18}", name):
            raise Refusal(404, "there is no such job: an id looks like j3")
        try:
            return self.server.store.find(name)
        except Storage:
            raise
        except Mistake as mistake:
            raise Refusal(404, str(mistake)) from None

    def _log(self, name: str) -> Path:
        path: Path = self.server.store.log(name if name == "daemon" else self._job(name).id)
        if not path.is_file():
            raise Refusal(404, f"{name} has no log yet")
        return path

    def refuse(self, status: int, why: str, **more: str) -> None:
        self.reply(status, JSON, _json({"error": why}), more)

    def reply(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
        for header in {**self.server.headers, **own}.items():
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of a malformed request, and 501 of another method. A body may follow unread: hang up."""
        if code == 501:
            self.refuse(405, "this server only reads: GET and HEAD", Allow="GET, HEAD", Connection="close")
        else:
            self.refuse(code, message or "this is no request", Connection="close")

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line every two seconds."""


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise Refusal(400, "limit and bytes are whole numbers")
    return int(text)


def _json(content: Any) -> bytes:
    """NaN, which a diverged run may have, is no JSON: null."""
    text = json.dumps(content)
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda name: None))
    return text.encode()


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
    """[{"epoch": 1, "train/loss": …}, …] of a log.jsonl, at most MOST_EPOCHS of them with the first and the last.

    A line that a kill cut short is left out, and so is any other that is no epoch: this is a look, not a record.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    found = [rows[epoch] for epoch in sorted(rows)]
    last = len(found) - 1
    if last >= MOST_EPOCHS:
        found = [found[i * last // (MOST_EPOCHS - 1)] for i in range(MOST_EPOCHS)]
    return [{"epoch": int(row["epoch"]), **{f"{part}/{name}": value for part, values in row.items()
             if isinstance(values, dict) for name, value in values.items() if isinstance(value, int | float)}}
            for row in found]


def serve(store: Any, port: int, state_of: Callable[[], dict[str, Any]], host: str = LOOPBACK[0]) -> None:
    """Serve until Ctrl-C; port 0 picks a free one."""
    tunnel = "from afar: ssh -L {0}:127.0.0.1:{0} THIS_MACHINE".format
    if host not in LOOPBACK:
        raise Mistake("the status page is for this machine only", f"host {host}", tunnel(port or 8765))
    try:
        server = Server(store, port, state_of, host)
    except (OSError, OverflowError) as error:
        raise Mistake("the status page cannot listen", f"port {port} of {host}: {error}",
                      "give another port, or 0 for any free one") from None
    print(f"{server.url}  (reads only; Ctrl-C ends it; {tunnel(server.server_address[1])})", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
