"""The part of HTTP/1.1 that probes and scrapers need, without I/O: a head in, a response out.

Each response ends its connection (RFC 9112 9.6), so nothing after a request's head is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

# Bytes of a request's head at most: Prometheus and kubelet send a few hundred.
LONGEST_HEAD = 8192
END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD request."""

    path: str
    query: dict[str, list[str]]
    accept: str
    head_only: bool


@dataclass(frozen=True, slots=True)
class Response:
    """A response, not yet encoded."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def encode(self, *, head_only: bool = False) -> bytes:
        """Return the bytes to send: for a HEAD request the same head, without the body."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
        ]
        if self.status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        head = "\r\n".join(lines).encode("latin-1") + END_OF_HEAD
        return head if head_only else head + self.body


def text(status: HTTPStatus, line: str) -> Response:
    """Make a response with one line for people."""
    return Response(status, line.encode() + b"\n")


TOO_LONG = text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head of a request has at most {LONGEST_HEAD} bytes")


def parse(head: bytes) -> Request | Response:
    """Parse a request's head, without END_OF_HEAD; returns the response if it cannot be served."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    parts = request_line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return text(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request, such as GET /metrics HTTP/1.1")
    method, target, _ = parts
    if method not in {"GET", "HEAD"}:
        return text(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not served here, GET and HEAD are")
    try:
        url = urlsplit(target)
    except ValueError as exc:
        return text(HTTPStatus.BAD_REQUEST, f"the request's target is no URL: {exc}")
    fields = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    accept = ",".join(value for name, value in fields if name == "accept")  # RFC 9110 5.3
    return Request(url.path, parse_qs(url.query), accept, method == "HEAD")
