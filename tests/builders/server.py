"""A local server that misbehaves in the ways that public hosts do."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)
WRONG = bytes(len(CONTENT))


class Server:
    """Answers each request with the next of `script`, the last one for ever; records paths and Range headers."""

    def __init__(self, counts: Counter[str]) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.script: dict[str, list[Callable[[BaseHTTPRequestHandler], None]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                steps = outer.script[self.path]
                step = steps.pop(0) if len(steps) > 1 else steps[0]
                counts["faults"] += getattr(step, "fault", True)
                step(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def serve(self, path: str, *steps: Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.script[path] = list(steps)
        return self.url(path)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def whole(content: bytes = CONTENT, kind: str = "application/gzip", cut: int | None = None, ranges: bool = True):
    """Send `content`, honouring ranges if `ranges`; with `cut`, close after that many bytes of the answer."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(asked[1]) if asked and ranges else 0
        if start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if asked and ranges else 200)
        if asked and ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][:cut])

    answer.fault = content != CONTENT or cut is not None or not ranges
    return answer


def status(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: request.send_error(code)


def silence(seconds: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send the header and a little, then nothing."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[:1000])
        request.wfile.flush()
        threading.Event().wait(seconds)

    return answer


def answer(code: int, *headers: tuple[str, str], content: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    """Send exactly this."""

    def step(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)

    return step


def redirect(url: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return answer(302, ("Location", url))


def reset(request: BaseHTTPRequestHandler) -> None:
    """Send a part, then break the connection off instead of closing it."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    request.wfile.write(CONTENT[:100_000])
    request.wfile.flush()
    time.sleep(0.1)  # what is still on its way when the connection is reset is lost
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def trickle(request: BaseHTTPRequestHandler) -> None:
    """Never stop, and never get anywhere."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    try:
        for byte in CONTENT:
            request.wfile.write(bytes([byte]))
            time.sleep(0.02)
    except OSError:  # the other side has had enough
        pass


def slowly(content: bytes, rate: int = 1_000_000) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send `content` as `whole` does, `rate` bytes a second."""

    def step(request: BaseHTTPRequestHandler) -> None:
        write = request.wfile.write

        def wait(data: bytes) -> None:
            for start in range(0, len(data), rate // 50):
                write(data[start : start + rate // 50])
                time.sleep(0.02)

        if not request.headers.get("Range"):
            request.wfile.write = wait
        whole(content)(request)

    step.fault = False
    return step
