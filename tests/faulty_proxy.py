"""An HTTP proxy in front of an S3 server, with faults on request."""

import contextlib
import http.client
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

# What a store answers: status and code.
ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
    "expired_token": (400, "ExpiredToken"),
    "clock_skew": (403, "RequestTimeTooSkewed"),
    "no_conditions": (501, "NotImplemented"),
    "no_trailers": (411, "MissingContentLength"),
}
# What happens on the way. lost_answer: the server has done it, and the client hears nothing.
ON_THE_WAY = {"reset", "slow_first_byte", "truncated", "lost_answer", "swallow", "wrong_date"}


class FaultyProxy:
    """Forwards requests to a server, but for those that a fault is planned for.

    Args:
        target: the server's URL.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self._lock = threading.Lock()
        self._plan: list[list] = []
        self._spoil: tuple[Iterator[str], int] | None = None
        self._live: set[socket.socket] = set()
        self.met: Counter = Counter()  # faults that requests have met
        self.requests: list[tuple[str, str]] = []  # method and path
        self.delay = 3.0  # seconds, of slow_first_byte
        self.port = 0
        self._listen()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plan(self, fault: str, times: int = 1, method: str = "", path: str = "") -> None:
        """The next requests (of a method, with some text in their path) meet a fault."""
        assert fault in ANSWERS or fault in ON_THE_WAY
        with self._lock:
            self._plan.append([fault, times, method, path])

    def spoil(self, faults: tuple[str, ...], every: int) -> None:
        """One of so many requests meets a fault, from now on; the faults take turns."""
        with self._lock:
            self._spoil = itertools.cycle(faults), every

    def calm(self) -> None:
        """Plan nothing more."""
        with self._lock:
            self._plan.clear()
            self._spoil = None

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse connections, and cut those that there are."""
        self._close()
        try:
            yield
        finally:
            self._listen()

    @contextmanager
    def outage_for(self, seconds: float) -> Iterator[None]:
        """An outage that ends by itself, within the block or after it."""
        self._close()
        timer = threading.Timer(seconds, self._listen)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def stop(self) -> None:
        self._close()

    def fault_for(self, method: str, path: str) -> str:
        with self._lock:
            self.requests.append((method, path))
            for planned in self._plan:
                fault, times, only, part = planned
                if times > 0 and only in ("", method) and part in path:
                    planned[1] -= 1
                    self.met[fault] += 1
                    return fault
            if self._spoil and len(self.requests) % self._spoil[1] == 0:
                fault = next(self._spoil[0])
                self.met[fault] += 1
                return fault
        return ""

    def forward(self, method: str, path: str, headers, body: bytes):
        connection = http.client.HTTPConnection(self._target, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders()
            connection.send(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            self._live.add(connection)
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address) -> None:
        with contextlib.suppress(OSError, ValueError):
            _Handler(connection, address, self)
        self._live.discard(connection)
        with contextlib.suppress(OSError):
            connection.close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._live):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _handle(self) -> None:
        body = self._body()
        fault = self.server.fault_for(self.command, self.path)
        if fault in ANSWERS:
            self._send_error(*ANSWERS[fault])
        elif fault == "reset":
            self._reset()
        elif fault == "swallow":
            time.sleep(60)
            self._reset()
        else:
            answer = self.server.forward(self.command, self.path, self.headers, body)
            if fault == "slow_first_byte":
                time.sleep(self.server.delay)
            if fault == "lost_answer":
                self._reset()
            else:
                self._answer(*answer, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _body(self) -> bytes:
        """As it came, with its framing."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = b""
        while True:
            line = self.rfile.readline()
            raw += line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            raw += self.rfile.read(size + 2)
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            raw += line
        return raw + b"\r\n"

    def _answer(self, status: int, headers, body: bytes, fault: str) -> None:
        self.send_response_only(status)
        dropped = {"transfer-encoding", "connection", *({"content-length"} if body else ())}
        for name, value in headers:
            if name.lower() == "date" and fault == "wrong_date":
                self.send_header(name, formatdate(time.time() - 1000, usegmt=True))
            elif name.lower() not in dropped:
                self.send_header(name, value)
        if body:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _send_error(self, status: int, code: str) -> None:
        xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        body = b"" if self.command == "HEAD" else xml.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass
