"""The connections of a proxy that spoils HTTP; what is spoiled, and how, says proxy.py."""

import socket
import socketserver
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.proxy import Answer, Blackhole, Cut, Delay, Fault, Flip, Lose, Proxy, Reset, Seen

_PIECE_BYTES = 256 * 1024
_NO_BODY = (204, 304)
Body = Iterator[tuple[bool, bytes]]
"""In pieces as they are on the wire, each with whether it is content or framing."""


class Server(socketserver.ThreadingTCPServer):
    """Accepts clients on a free port of loopback; closing it waits for their threads."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.proxy = proxy
        self.open: set[socket.socket] = set()

    def shutdown_request(self, request: Any) -> None:
        """Only close it: whether by a reset or not has been settled."""
        self.close_request(request)

    def hang_up(self) -> None:
        """Let go of everybody, so that no thread waits for a socket."""
        for one in list(self.open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Broken(Exception):
    """The connection is of no use any more; reset it, or close it as if all were well."""

    def __init__(self, reset: bool) -> None:
        super().__init__(reset)
        self.reset = reset


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection, and one to the server, once there is something to ask it."""

    disable_nagle_algorithm = True
    server: Server
    _behind: socket.socket | None = None

    def handle(self) -> None:
        self.server.open.add(self.connection)
        try:
            self._all()
        except _Broken as broken:
            if broken.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_WR)
        except (OSError, ValueError, EOFError):
            pass  # either side hung up, or says what is no HTTP: so does the proxy
        finally:
            self.server.open.discard(self.connection)
            self._leave_behind()

    def _leave_behind(self) -> None:
        if self._behind is not None:
            self.server.open.discard(self._behind)
            self._from_behind.close()
            self._behind.close()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def _all(self) -> None:
        while self._one():
            pass

    def _one(self) -> bool:
        """One request and its answer; False when there was none any more."""
        head = _read_head(self.rfile)
        if not head:
            return False
        method, target, _ = head[0].split(" ", 2)
        headers = _headers(head)
        query = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        path = unquote(urlsplit(target).path)
        fault = self.server.proxy.judge(Seen(method, path, query, headers))
        if "expect" in headers:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = [line for line in head if not line.lower().startswith("expect:")]
        body = _body(self.rfile, headers)
        if isinstance(fault, Answer):
            for _ in body:
                pass
            self.wfile.write(_error(fault, method))
            return True
        if isinstance(fault, Delay | Blackhole):
            self.server.proxy.stopping.wait(fault.seconds)
            if isinstance(fault, Blackhole):
                raise _Broken(reset=False)
        self._ask(head, body, fault)
        return self._answer(method, fault)

    def _ask(self, head: list[str], body: Body, fault: Fault | None) -> None:
        if self._behind is None:
            self._behind = socket.create_connection(self.server.proxy.upstream)
            self._behind.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.server.open.add(self._behind)
            self._from_behind = self._behind.makefile("rb")
        self._behind.sendall(_bytes(head))
        _pass(body, self._behind, fault if getattr(fault, "of", "") == "request" else None)

    def _answer(self, method: str, fault: Fault | None) -> bool:
        head = _read_head(self._from_behind)
        while head and head[0].split(" ")[1] == "100":
            head = _read_head(self._from_behind)
        if not head or isinstance(fault, Lose):
            raise _Broken(reset=True)
        headers = _headers(head)
        self.connection.sendall(_bytes(head))
        if method != "HEAD" and int(head[0].split(" ")[1]) not in _NO_BODY:
            body = _body(self._from_behind, headers, answer=True)
            _pass(body, self.connection, fault if getattr(fault, "of", "") == "answer" else None)
        known = "content-length" in headers or "transfer-encoding" in headers
        return known and headers.get("connection", "").lower() != "close"


def _pass(body: Body, to: socket.socket, fault: Fault | None) -> None:
    """Pass a body on, spoiled on its way by a Flip, a Cut or a Reset."""
    passed = 0
    for content, piece in body:
        if content and isinstance(fault, Cut | Reset) and passed + len(piece) >= fault.after:
            to.sendall(piece[: fault.after - passed])
            raise _Broken(reset=isinstance(fault, Reset))
        if content and isinstance(fault, Flip) and 0 <= (at := fault.byte - passed) < len(piece):
            piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
        to.sendall(piece)
        passed += len(piece) if content else 0


def _read_head(file: Any) -> list[str]:
    """The lines before a body; [] when nothing comes any more."""
    lines: list[str] = []
    while line := file.readline().decode("latin-1"):
        if not (line := line.rstrip("\r\n")):
            return lines
        lines.append(line)
    return []


def _bytes(head: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in (*head, "")).encode("latin-1")


def _headers(head: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in head[1:])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _body(file: Any, headers: Mapping[str, str], *, answer: bool = False) -> Body:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while line := file.readline():
            yield False, line
            if not (size := int(line.partition(b";")[0], 16)):
                break
            yield from ((True, piece) for piece in _exactly(file, size))
            yield False, file.readline()
        while (line := file.readline()).strip():
            yield False, line
        yield False, line
    elif "content-length" in headers:
        yield from ((True, piece) for piece in _exactly(file, int(headers["content-length"])))
    elif answer:  # it ends where the connection does
        while piece := _some(file, _PIECE_BYTES):
            yield True, piece


def _exactly(file: Any, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = _some(file, min(size, _PIECE_BYTES))
        if not piece:
            raise EOFError
        size -= len(piece)
        yield piece


def _some(file: Any, most: int) -> bytes:
    """What has come already, at least one byte; b"" at the end."""
    piece: bytes = file.read1(most)
    return piece


def _error(fault: Answer, method: str) -> bytes:
    body = fault.body
    if body is None:
        said = f"<Code>{fault.code}</Code><Message>said by the proxy</Message>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{said}</Error>'.encode()
    head = [f"HTTP/1.1 {fault.status} Said", "Content-Type: application/xml"]
    head.append(f"Content-Length: {len(body)}")
    head += [f"{name}: {value}" for name, value in fault.headers.items()]
    return _bytes(head) + (b"" if method == "HEAD" else body)
