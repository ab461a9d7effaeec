"""A small HTTP client that sends any bytes, also those that no HTTP library would send."""

import json
import re
import selectors
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Reply:
    """What came back. `status` is 0 if no response came; `trouble` then says why."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    trouble: str = ""
    n_sent: int = 0
    seconds: float = 0.0
    rest: bytes = b""

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def error(self):
        """The field `error` of the body; an empty dict if the body is no error of the API."""
        body = self.json()
        error = body.get("error") if isinstance(body, dict) else None
        return error if isinstance(error, dict) and error.get("message") else {}

    def describe(self):
        if self.status == 0:
            return f"no response ({self.trouble})"
        message = self.error().get("message") or self.body[:80].decode(errors="replace")
        return f"{self.status} {message[:160]}" if self.status >= 300 else str(self.status)


def head(method, path, *headers, host="localhost"):
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(path, body, *headers, content_type="application/json"):
    """A whole POST request. `body` is bytes, or a value that becomes JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    types = [f"Content-Type: {content_type}"] if content_type else []
    return head("POST", path, *types, f"Content-Length: {len(body)}", *headers) + body


def get(port, path, timeout=30):
    return exchange(port, [head("GET", path, "Connection: close")], timeout)


def embed(port, texts, timeout=60, **fields):
    """Sends an ordinary request for embeddings."""
    return exchange(port, [post("/v1/embeddings", {"input": texts, **fields}, "Connection: close")], timeout)


def exchange(port, parts, timeout=60, wait_for_more=0.0):
    """Sends the byte strings in `parts` while it reads the response, so that a response to an unfinished request is not
    lost. Ends when the first response is complete. `wait_for_more` is a time to collect what follows it."""
    reply, began = Reply(), time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = _talk(connection, iter(parts), reply, began + timeout, wait_for_more)
    except OSError as error:
        reply.trouble = str(error)
        received = b""
    reply.seconds = time.monotonic() - began
    if received:
        parse(received, reply)
    return reply


def _talk(connection, parts, reply, end, wait_for_more):
    connection.setblocking(False)
    received, pending = bytearray(), b""
    is_sending = True
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while time.monotonic() < end:
            for _, events in selector.select(0.2):
                if events & selectors.EVENT_READ:
                    try:
                        data = connection.recv(1 << 18)
                    except ConnectionError as error:
                        reply.trouble = str(error)
                        return bytes(received)
                    if not data:
                        reply.trouble = "closed"
                        return bytes(received)
                    received += data
                    if is_complete(received):
                        end = min(end, time.monotonic() + wait_for_more)
                elif events & selectors.EVENT_WRITE and is_sending:
                    pending = pending or next(parts, b"")
                    if not pending:
                        is_sending = False
                        selector.modify(connection, selectors.EVENT_READ)
                        continue
                    try:
                        n_sent = connection.send(pending)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        # The server has closed the connection. Its response may still be readable.
                        is_sending = False
                        selector.modify(connection, selectors.EVENT_READ)
                        continue
                    reply.n_sent += n_sent
                    pending = memoryview(pending)[n_sent:]
    if not received:
        reply.trouble = "timeout"
    return bytes(received)


def split(received):
    """The status, headers and end of the head; None if the head is not complete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    status = re.match(r"HTTP/1\.[01] (\d{3})", lines[0])
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return (int(status[1]) if status else 0), headers, end + 4


def body_length(received):
    """The number of bytes until the end of the first response; None if it is not known yet."""
    parts = split(received)
    if parts is None:
        return None
    status, headers, start = parts
    if headers.get("transfer-encoding", "").lower() == "chunked":
        end = received.find(b"0\r\n\r\n", start)
        return None if end < 0 else end + 5
    return start + int(headers.get("content-length", "0"))


def is_complete(received):
    length = body_length(received)
    return length is not None and len(received) >= length


def parse(received, reply):
    """Fills `reply` from the bytes of the first response."""
    parts = split(received)
    if parts is None:
        reply.trouble = reply.trouble or "incomplete head"
        return
    reply.status, reply.headers, start = parts
    length = body_length(received)
    if length is None or len(received) < length:
        reply.trouble = f"incomplete body ({reply.trouble})"
        reply.status = 0
        return
    reply.body = bytes(received[start:length])
    reply.rest = bytes(received[length:])
