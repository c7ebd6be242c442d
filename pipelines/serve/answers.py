"""Answers of the service as ASGI messages, and the two forms in which it says what is wrong.

Ray's proxies import this with the gate: nothing here needs torch.
"""

import json
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]

ENCODE = "/encode"
EMBEDDINGS = "/v1/embeddings"
"""The path, below the address that they are told, to which clients of OpenAI's API send what is to be embedded."""
VECTOR_PATHS = (ENCODE, EMBEDDINGS)


class Page(NamedTuple):
    """What is answered as it is, each time the same."""

    media_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def problem(path: str, status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """What is wrong with a request, in the form that the clients of its path read.

    Args:
        path: of the request.
        status: of HTTP.
        message: what is wrong and what to do.
        code: a short error code, where the form has one.
        param: the key of the request that it is about, where the form has one.
    """
    if not path.endswith(EMBEDDINGS):
        return {"detail": message}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(status: int, content: dict[str, Any] | Page, is_last: bool = False, more: bool = False) -> list[Message]:
    """An answer as ASGI messages.

    Args:
        status: of HTTP; with 503 the client is asked to try again after a second.
        content: the JSON, or a page.
        is_last: the connection is closed after it.
        more: the last message, an empty one, follows later.
    """
    page = content if isinstance(content, Page) else Page("application/json", json.dumps(content).encode())
    headers = [(b"content-type", page.media_type.encode()), (b"content-length", str(len(page.body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in page.headers]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if is_last:
        headers.append((b"connection", b"close"))
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": page.body, "more_body": more},
    ]


def as_bytes(messages: list[Message]) -> bytes:
    """An answer as it goes over the network."""
    start, *parts = messages
    lines = [b"HTTP/1.1 %d %s" % (start["status"], HTTPStatus(start["status"]).phrase.encode())]
    lines += [name + b": " + value for name, value in start["headers"]]
    return b"\r\n".join(lines) + b"\r\n\r\n" + b"".join(part["body"] for part in parts)
