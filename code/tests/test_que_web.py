"""The status page: what the server answers and refuses, and the page itself in a real browser."""

import base64
import contextlib
import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from que import web
from que.errors import Mistake, Storage

ROOT = Path(web.__file__).parents[1]
EVIL = '<script>document.title = "owned"</script><img src=x onerror="document.title = 1">'
NOW = 1_795_200_000.0


def job(name: str, state: str, index: int, **more: Any) -> dict[str, Any]:
    return {"id": name, "state": state, "index": index, "title": f"S3D asl100 {name[1:]}", "model": "S3D",
            "split": "asl100", "exp_no": name[1:], "priority": 0, "note": "", "gpus": None, "memory": None,
            "after": [], "reason": "", "stage": "train", "run": "", "epoch": None, "epochs": None, "step": 0,
            "steps": 0, "progress": None, "eta_s": None, "best": None, "devices": [], "peak": 0, "started": None,
            "ended": None, "created": NOW - 9000, "attempts": 0, "wandb_url": None, "has_log": False,
            "has_curves": False, **more}


def state_of_a_night(run: str = "") -> dict[str, Any]:
    gpu = {"index": 0, "name": "NVIDIA H200", "uuid": "GPU-a", "total": 128 << 30, "free": 64 << 30, "jobs": ["j3"],
           "utilization": 87}
    return {"now": NOW, "daemon": {"state": "running", "pid": 42, "since": NOW - 9000, "note": ""}, "gpus": [gpu],
            "slots": {"total": 1, "used": 0}, "warnings": ["1 in quarantine: j9.json"],
            "disk": {"free": 80 << 30, "total": 250 << 30},
            "jobs": [job("j3", "cur_run", 0, epoch=3, epochs=12, step=4, steps=30, progress=0.26, eta_s=5400,
                         best={"metric": "acc", "value": 0.625, "epoch": 2}, devices=["0"], peak=48 << 30,
                         started=NOW - 4000, attempts=1, has_log=True, has_curves=True, run=run),
                     job("j4", "to_run", 0, note=EVIL, priority=5, reason="no GPU is free"),
                     job("j5", "to_run", 1, after=["j3"], reason="waits for j3"),
                     job("j2", "fail_runs", 0, reason="error: the loss is not finite", ended=NOW - 100, attempts=2,
                         wandb_url="javascript:alert(1)", has_log=True),
                     *(job(f"j{n}", "old_runs", n - 100, ended=NOW - 1000 + n) for n in range(100, 160))]}


class Store:
    """As much of the store as the page asks for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.broken: Exception | None = None

    def find(self, name: str) -> SimpleNamespace:
        if self.broken:
            raise self.broken
        if name not in ("j3", "j4"):
            raise Mistake("there is no such job", name, "`que list` names those that there are")
        return SimpleNamespace(id=name, run=str(self.folder / "run") if name == "j3" else "")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Night:
    """A server on a free port and what it serves."""

    def __init__(self, folder: Path):
        self.folder, self.looks, self.port = folder, 0, 0
        (folder / "run").mkdir()
        self.store, self.state = Store(folder), state_of_a_night(str(folder / "run"))
        self.broken: Exception | None = None

    def state_of(self) -> dict[str, Any]:
        self.looks += 1
        if self.broken:
            raise self.broken
        return self.state

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        server = web.Server(self.store, self.port, self.state_of)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        self.server, self.port = server, server.server_address[1]
        try:
            yield server.url
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        is_json = answer.headers["Content-Type"].startswith("application/json") and body
        return answer.status, json.loads(body) if is_json else body, answer

    def epochs(self, *rows: Any) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.folder / "run" / "log.jsonl").write_text("\n".join(lines))


@pytest.fixture
def night(tmp_path, monkeypatch) -> Iterator[Night]:
    monkeypatch.setattr(web, "KEPT", 0.0)
    found = Night(tmp_path)
    with found.served():
        yield found


# --- the server


def test_the_page_comes_whole_and_may_do_nothing_but_its_own(night):
    status, body, answer = night.ask("/")
    page = (ROOT / "que" / "page.html").read_bytes()
    assert status == 200 and body == page
    policy = answer.headers["Content-Security-Policy"]
    for tag in (b"script", b"style"):
        inner = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        assert len(inner) == 1 and base64.b64encode(hashlib.sha256(inner[0]).digest()).decode() in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
    outside = re.findall(rb"https?:[\w./]*", page)
    assert set(outside) <= {b"http://www.w3.org/", b"http://www.w3.org/2000/svg"}
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(| style=| on\w+=\"", page)


def test_the_state_as_it_is_with_counts(night):
    status, body, answer = night.ask("/api/state")
    assert status == 200 and answer.headers["Content-Type"] == "application/json; charset=utf-8"
    counts = {"cur_run": 1, "to_run": 2, "fail_runs": 1, "old_runs": 60}
    assert {**body, "jobs": None} == {**night.state, "counts": counts, "jobs": None}
    assert sorted(row["id"] for row in body["jobs"]) == sorted(row["id"] for row in night.state["jobs"])


def test_a_limit_keeps_the_newest_and_the_job_that_is_looked_at(night):
    _, body, _ = night.ask("/api/state?limit=5&id=j100")
    done = [row["id"] for row in body["jobs"] if row["state"] == "old_runs"]
    assert done == ["j159", "j158", "j157", "j156", "j155", "j100"] and body["counts"]["old_runs"] == 60
    assert [row["id"] for row in body["jobs"]][:4] == ["j3", "j4", "j5", "j2"]
    assert night.ask("/api/state?limit=many")[1]["jobs"] == night.ask("/api/state")[1]["jobs"]


def test_one_look_serves_every_tab(night, monkeypatch):
    monkeypatch.setattr(web, "KEPT", 60.0)
    threads = [threading.Thread(target=night.ask, args=("/api/state",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert night.looks == 1


def test_what_is_no_number_is_null(night):
    night.state["jobs"][0]["best"]["value"] = float("nan")
    night.state["jobs"][1]["note"] = "NaN, Infinity"
    _, body, _ = night.ask("/api/state")
    assert body["jobs"][0]["best"]["value"] is None and body["jobs"][1]["note"] == "NaN, Infinity"


def test_trouble_with_the_que_is_told(night):
    night.broken = Storage("the disk is full", "0 B left", "make room")
    assert night.ask("/api/state")[:2] == (500, {"error": "the disk is full: 0 B left\n  make room"})
    night.store.broken = Storage("the folder is read-only", "que/state")
    assert night.ask("/api/curves?id=j3")[:2] == (500, {"error": "the folder is read-only: que/state"})


def test_the_tail_of_a_log(night):
    (night.folder / "j3.log").write_bytes(b"first line\nsecond \xe2\x9c\x93\nthird")
    (night.folder / "daemon.log").write_text("started j3\n")
    status, body, answer = night.ask("/api/log?id=j3")
    assert status == 200 and body == b"first line\nsecond \xe2\x9c\x93\nthird" and answer.headers["X-Log-Size"] == "27"
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert night.ask("/api/log?id=daemon")[1] == b"started j3\n"
    (night.folder / "daemon.log").write_text("one line\n" * 10_000)
    status, body, answer = night.ask("/api/log?id=daemon")
    assert body == b"one line\n" * (65536 // 9) and answer.headers["X-Log-Size"] == "90000"
    assert night.ask("/api/log?id=j4")[:2] == (404, {"error": "j4 has no log yet"})


@pytest.mark.parametrize("name", ["", "j77", "../daemon", "j3/../daemon", "%2e%2e%2fdaemon", "j3%00", "J3", "jx", "j٣",
                                  "j3.log", "j" + "9" * 99])
def test_other_ids_are_not_found(night, name):
    for path in ("log", "curves"):
        status, body, _ = night.ask(f"/api/{path}?id={urllib.request.quote(name, safe='%')}")
        assert status == 404 and "no such job" in body["error"]


@given(data=st.binary(max_size=200), size=st.integers(0, 220))
def test_a_tail_is_whole_lines_of_the_end(tmp_path_factory, data, size):
    path = tmp_path_factory.getbasetemp() / "some.log"
    path.write_bytes(data)
    found, total = web.tail(path, size)
    assert total == len(data) and len(found) <= size and data.endswith(found)
    rest, cut = data[:len(data) - len(found)], len(data) > size
    assert not rest if not cut else rest.endswith(b"\n") or b"\n" not in found[:-1]


def test_curves_are_flat_and_tolerant(night):
    night.epochs({"epoch": 1, "train": {"loss": 2.5, "acc": 0.1}, "val": None, "lr": {"head": 0.01}, "seconds": 3},
                 {"epoch": 2, "train": {"loss": float("nan")}, "changed": {"a.b": [1, 2]}}, '{"epoch": 3, "tra')
    assert night.ask("/api/curves?id=j3")[:2] == (200, [
        {"epoch": 1, "train/loss": 2.5, "train/acc": 0.1, "lr/head": 0.01}, {"epoch": 2, "train/loss": None}])
    assert night.ask("/api/curves?id=j4")[:2] == (200, [])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])
def test_it_only_reads(night, method):
    status, body, answer = night.ask("/api/state", method)
    assert status == 501 and method in body["error"] and answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/index.html", "/api/", "/../web.py", "/%2e%2e/", "/page.html"])
def test_there_is_nothing_else(night, path):
    assert night.ask(path)[0] == 404


@pytest.mark.parametrize("host, status", [("localhost", 200), ("LocalHost:1", 200), ("127.0.0.1:8317", 200),
                                          ("[::1]:80", 200), ("evil.example", 403), ("localhost.evil.example", 403),
                                          ("127.0.0.1@evil.example", 403), ("127.0.0.2", 403), ("0.0.0.0", 403),
                                          ("", 403)])
def test_it_answers_to_its_own_names_only(night, host, status):
    for path in ("/", "/api/state", "/api/log?id=daemon"):
        assert night.ask(path, Host=host)[0] in (status, 404 if status == 200 else status)


def test_nonsense_is_answered_and_the_server_lives_on(night):
    for line in (b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", night.port), timeout=5) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            assert re.search(rb'HTTP/1.0 4|"error"|505', connection.recv(4096))
    assert night.ask("/api/state")[0] == 200


def test_a_used_port_and_none_at_all_are_mistakes(night):
    with pytest.raises(Mistake) as found:
        web.serve(night.store, night.port, night.state_of)
    assert "cannot listen" in found.value.wrong and str(night.port) in found.value.found and found.value.do
    with pytest.raises(Mistake):
        web.serve(night.store, 70000, night.state_of)


def test_serve_tells_where_and_ends_on_ctrl_c():
    code = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's `&` has it ignored
            "from que import web; web.serve(None, 0, lambda: {'jobs': []})")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        url = re.match(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(url + "api/state", timeout=5) as answer:
            assert json.load(answer) == {"jobs": [], "counts": {}}
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0 and "ssh -L" in line
        finally:
            process.kill()


# --- the page in a real browser


class Browser:
    """Headless Chromium over WebDriver's plain HTTP."""

    def __init__(self, profile: Path):
        self.driver = subprocess.Popen([shutil.which("chromedriver"), "--port=0"], stdout=subprocess.PIPE, text=True)
        ports = (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)
        self.base = f"http://127.0.0.1:{next(found[1] for found in ports if found)}/session"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.base += "/" + self.call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def js(self, code: str) -> Any:
        return self.call("/execute/sync", {"script": f"return {code}", "args": []})

    def text(self, selector: str) -> str:
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join('\\n')")

    def one(self, selector: str, what: str) -> Any:
        return self.js(f"document.querySelector({json.dumps(selector)}).{what}")

    def click(self, selector: str) -> None:
        found = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{next(iter(found.values()))}/click")

    def press(self, key: str) -> None:
        keys = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def until(self, code: str, limit: float = 6.0) -> None:
        deadline = time.monotonic() + limit
        while not self.js(code):
            assert time.monotonic() < deadline, f"never: {code}; the page says\n{self.text('body')}"
            time.sleep(0.05)

    def nudge(self) -> None:
        """Let the page ask now, not in two seconds."""
        self.js("document.dispatchEvent(new Event('visibilitychange'))")

    def resize(self, width: int, height: int = 800, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        for name, values in (("setDeviceMetricsOverride", size), ("setEmulatedMedia", media)):
            self.call("/goog/cdp/execute", {"cmd": f"Emulation.{name}", "params": values})

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]

    def close(self) -> None:
        try:
            self.call("", method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait(10)
            self.driver.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no chromium with chromedriver here")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(browser, night) -> Browser:
    """The page of `night`, open and drawn."""
    (night.folder / "j3.log").write_text(f"\x1b[32mgreen\x1b[0m\n{EVIL}\nepoch 1:  10%\repoch 1:  99%\repoch 1: 100%\n")
    night.epochs(*({"epoch": n, "train": {"loss": 3 / n, "acc": n / 9}, "val": {"loss": 4 / n, "acc": n / 10}}
                   for n in range(1, 9)))
    browser.resize(1280)
    browser.call("/url", {"url": "about:blank"})
    browser.complaints()
    browser.call("/url", {"url": f"http://127.0.0.1:{night.port}/"})
    browser.until("document.querySelectorAll('.row').length > 0")
    return browser


def test_the_jobs_appear_and_nothing_comes_from_elsewhere(page, night):
    assert page.js("document.title") == "1 running, 2 queued"
    running, queued = page.text("#cur_run"), page.text("#to_run")
    for words in ("S3D asl100 3 j3", "epoch 3 of 12", "step 4 of 30", "26 %", "1 h 30", "acc 0.625 (epoch 2)", "GPU 0",
                  "1 h 06"):
        assert words in running
    for words in ("S3D asl100 4 j4", "priority 5", "no GPU is free", "waits for j3", "after j3"):
        assert words in queued
    assert "error: the loss is not finite" in page.text("#fail_runs") and page.one("#held", "hidden")
    assert "ours 48.0 GiB j3" in page.text("#machine") and "others 16.0 GiB" in page.text("#machine")
    assert "free 64.0 GiB" in page.text("#machine") and "80.0 GiB free" in page.text("#machine")
    assert "1 in quarantine: j9.json" in page.text("#banners") and "running since" in page.text("#daemon")
    assert EVIL in queued and not page.js("document.querySelectorAll('script').length - 1")
    assert page.text("#old_runs .id").split()[:4] == ["j159", "59", "j158", "58"]
    assert page.js("document.querySelectorAll('#old_runs .row').length") == 50
    page.click("#old_runs .more")
    page.until("document.querySelectorAll('#old_runs .row').length === 60")
    assert page.one("#old_runs .more", "hidden")
    asked = page.js("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(url.startswith((f"http://127.0.0.1:{night.port}/", "data:")) for url in asked)
    assert page.complaints() == []


def test_changes_appear_by_themselves(page, night):
    quick = night.server.page.replace(b"EVERY = 2000", b"EVERY = 200")
    night.server.page, night.server.headers = quick, web._headers(quick.decode())
    page.call("/refresh")
    page.until("document.querySelectorAll('.row').length > 0")
    page.js("window.same = document.querySelector('#cur_run .open')")
    page.js("document.querySelector('#cur_run .open').focus()")
    night.state["jobs"][0].update(epoch=4, step=0)
    night.state["jobs"][1].update(state="cur_run", index=1, devices=["cpu:0"], started=NOW)
    night.state["daemon"].update(state="stopped", pid=None, note="it was stopped by hand")
    page.until("document.title === '2 running, 1 queued'")
    assert "epoch 4 of 12" in page.text("#cur_run") and "CPU slot 0" in page.text("#cur_run")
    assert "The daemon is stopped: nothing will start. it was stopped by hand" in page.text("#banners .bad")
    assert page.js("document.querySelector('#cur_run .open') === window.same && document.activeElement === window.same")
    page.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.nudge()
    time.sleep(0.1)
    looks = night.looks
    time.sleep(0.4)
    assert night.looks == looks
    page.js("delete document.hidden")
    page.nudge()
    night.state["daemon"].update(note="seen again")
    page.until("document.querySelector('#banners').innerText.includes('seen again')")


def test_a_click_opens_log_and_curves(page, night):
    page.click("#cur_run .open")
    page.until("document.querySelectorAll('#curves path').length === 4 && document.querySelector('#log').innerText")
    assert page.text("#log") == f"green\n{EVIL}\nepoch 1: 100%\n" and "S3D asl100 3 j3" in page.text("#name")
    assert page.js("document.title") == "1 running, 2 queued" and page.js("location.hash") == "#j3"
    assert page.text("#curves figcaption b").split() == ["loss", "acc"]
    assert "epoch 8" in page.text("#curves figcaption") and str(night.folder / "run") in page.text("#about")
    page.js("document.querySelector('#curves figure').focus()")
    page.press("\ue011")  # Home
    assert "epoch 1" in page.text("#curves figcaption") and "train 3" in page.text("#curves figcaption")
    middle = page.js("(r => [r.left + 46 + (r.width - 56) / 7 * 3, r.top + 60])(document.querySelector('figure svg')"
                     ".getBoundingClientRect())")
    move = {"type": "pointerMove", "x": round(middle[0]), "y": round(middle[1])}
    page.call("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})
    page.until("document.querySelector('figcaption').innerText.includes('val 1\\n') || "
               "/epoch 4.*val 1/s.test(document.querySelector('figcaption').innerText)")
    page.press("\ue00c")  # Escape
    page.until("!document.querySelector('#detail').open && location.hash === ''")
    assert page.js("document.activeElement.dataset.open") == "j3"
    page.click("[data-open=j2]")
    page.until("document.querySelector('#log').innerText.includes('no such job')")
    assert page.one("#about", "querySelectorAll('a').length") == 0 and page.one("#curvesbox", "hidden")


def test_a_log_is_followed_at_its_end_and_left_alone_above(page, night):
    log = night.folder / "j3.log"
    log.write_text("".join(f"line {n}\n" for n in range(300)))
    page.js("(location.hash = 'j3')")
    at_end = "(log => log.scrollTop + log.clientHeight > log.scrollHeight - 4)(document.querySelector('#log'))"
    page.until(f"document.querySelector('#log').innerText.includes('line 299') && {at_end}")
    log.write_text(log.read_text() + "more\n")
    page.nudge()
    page.until(f"document.querySelector('#log').innerText.endsWith('more\\n') && {at_end}")
    page.js("(document.querySelector('#log').scrollTop = 40)")
    page.until("!document.querySelector('#toend').hidden")
    log.write_text(log.read_text() + "unseen\n")
    looks = night.looks
    page.nudge()
    while night.looks == looks:
        time.sleep(0.02)
    time.sleep(0.2)
    assert "unseen" not in page.text("#log") and page.js("document.querySelector('#log').scrollTop") == 40
    page.click("#toend")
    page.until(f"document.querySelector('#log').innerText.endsWith('unseen\\n') && {at_end}")


def test_it_says_that_the_server_is_gone_and_comes_back(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "KEPT", 0.0)
    found = Night(tmp_path)
    with found.served() as url:
        browser.call("/url", {"url": url})
        browser.until("document.querySelectorAll('.row').length > 0")
        found.broken = Storage("the disk is full", "0 B left")
        browser.nudge()
        browser.until("document.querySelector('#banners').innerText.includes('The server says: the disk is full: 0 B')")
        found.broken = None
        browser.nudge()
        browser.until("!document.querySelector('#main').classList.contains('gone')")
    browser.nudge()
    browser.until("/No answer since \\d\\d:\\d\\d:\\d\\d/.test(document.querySelector('#banners').innerText)")
    assert browser.text("#live") == "no answer" and "S3D asl100 3" in browser.text("#cur_run")
    with found.served():
        browser.nudge()
        browser.until("document.querySelector('#live').innerText === 'live'")


NARROW = "[...document.querySelectorAll('%s')].every(e => e.scrollWidth <= e.clientWidth)"
# The relative luminance of a colour of the page, as WCAG defines it for contrasts; text needs one of 4.5.
LIGHT = """(() => {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = "var(--%s)";
  const parts = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(part => part / 255);
  probe.remove();
  return parts.map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
})()"""
SEEN = [("text", "bg"), ("text", "card"), ("soft", "bg"), ("soft", "card"), ("soft", "sunk"), ("blue", "card"),
        ("blue", "bg"), ("red", "card"), ("red", "redbg"), ("text", "redbg"), ("amber", "card"), ("amber", "amberbg"),
        ("text", "amberbg"), ("train", "card")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable_in_both_schemes(page, night, scheme):
    page.resize(360, 700, scheme)
    assert page.js("innerWidth") == 360 and page.js(NARROW % "html, main, .card, .list")
    page.js("(location.hash = 'j3')")
    page.until("document.querySelectorAll('#curves path').length === 4")
    assert page.js(NARROW % "#detail, #panel, #panel .card, figure, #log")
    light = {name: page.js(LIGHT % name) for pair in SEEN for name in pair}
    for front, back in SEEN:
        low, high = sorted((light[front], light[back]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)
