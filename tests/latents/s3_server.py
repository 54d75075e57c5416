"""An S3 server on loopback that can lose requests and answers."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


def no_fault(request: str) -> str | None:
    return None


class S3Server:
    """moto's S3, which keeps objects in memory and takes any credentials.

    ``fault`` is asked about each request, such as ``PUT /bucket/prefix/name?partNumber=1``:

    ``lose request``  the connection is cut and nothing is done
    ``lose answer``   it is carried out, then the connection is cut
    ``fail after``    it is carried out, then the answer is 500
    ``conflict``      the answer is 409, and nothing is done
    ``deny``          the answer is 403, and nothing is done
    ``hang``          nothing is done, and there is no answer before `close`
    """

    bucket = "bucket"

    def __init__(self) -> None:
        self.forget()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_put = threading.Lock()
        self._closing = threading.Event()
        self._server = make_server(
            "127.0.0.1", 0, self, threaded=True, request_handler=_SilentHandler
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        urllib.request.urlopen(
            urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
        ).close()

    def forget(self) -> None:
        """Counts no request, and makes no fault any more."""
        self.fault: Callable[[str], str | None] = no_fault
        self.requests: list[str] = []

    def once(self, method: str, fault: str) -> None:
        """Makes that fault with the next request of the method."""

        def decide(request: str) -> str | None:
            if not request.startswith(method):
                return None
            self.fault = no_fault
            return fault

        self.fault = decide

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path, query = (
            environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING")
        )
        request = f"{method} {path}?{query}".rstrip("?")
        self.requests.append(request)
        match self.fault(request):
            case "lose request":
                return _cut(environ)
            case "lose answer":
                self._carry_out(environ, lambda *_: None)
                return _cut(environ)
            case "fail after":
                self._carry_out(environ, lambda *_: None)
                return _refuse(start_response, "500 Internal Server Error", "InternalError")
            case "conflict":
                return _refuse(start_response, "409 Conflict", "ConditionalRequestConflict")
            case "deny":
                return _refuse(start_response, "403 Forbidden", "AccessDenied")
            case "hang":
                self._closing.wait()
                return _cut(environ)
        return self._carry_out(environ, start_response)

    def _carry_out(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return list(self._moto(environ, start_response))
        with self._one_put:  # moto checks a condition and writes in two steps, S3 in one
            return list(self._moto(environ, start_response))


class _SilentHandler(MotoRequestHandler):  # type: ignore[misc]
    def log(self, *_: object) -> None:
        pass


def _cut(environ: dict[str, Any]) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionError("cut on purpose")


def _refuse(start_response: Any, status: str, code: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/xml")])
    return [f'<?xml version="1.0"?><Error><Code>{code}</Code></Error>'.encode()]


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
