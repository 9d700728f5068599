"""WatchServer: the page that follows runs, on this machine alone and for who knows its address."""

import hmac
import secrets
import socketserver
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from mim.io.files import to_json
from mim.lab.watch.folders import RunFolders

HOST = "127.0.0.1"
PAGE = {  # files of the page, by the last part of their address: name and type
    "": ("watch.html", "text/html; charset=utf-8"),
    "watch.css": ("watch.css", "text/css; charset=utf-8"),
    "watch.js": ("watch.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
TIMEOUT_S = 30  # for a request


class WatchServer(ThreadingHTTPServer):
    """Serves the page of the runs at and below some folders. It keeps no state: all it shows is read from the folders.

    A request without the token is answered with 403, and so is one in the name of another host, as by a page whose
    name a foreign server resolves to this machine. Pictures are served by names that a listing of the folder has; no
    path is made of an address.

    Attributes: token, the secret part of the address; url, the address.

    Args:
        paths: run folders, or folders that hold run folders at any depth.
        port: of 127.0.0.1; 0 for any that is free.

    Raises ValueError where a path is not a folder, and OSError where the port is taken.
    """

    daemon_threads = True

    def __init__(self, paths: Sequence[Path], port: int = 0):
        self.folders = RunFolders(paths)
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"port {port} of {HOST}") from error
        self.url = f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def server_bind(self) -> None:
        """Binds the port. HTTPServer's own method also asks a name server for the name of the machine."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports an error of ours; a browser that left is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: WatchServer
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Sends a file of the page, the state of the runs, the charts of one, or a picture."""
        _, token, *parts = self.path.partition("?")[0].split("/") if self.path.startswith("/") else ("", "")
        if not self._is_allowed(token):
            return self._send_error(HTTPStatus.FORBIDDEN, "This address has no valid token.")
        content = self._content(parts)
        if content is None:
            return self._send_error(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
        self._send(HTTPStatus.OK, *content)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def _is_allowed(self, token: str) -> bool:
        port = self.server.server_port
        known_host = self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")
        return hmac.compare_digest(token.encode(), self.server.token.encode()) and known_host

    def _content(self, parts: list[str]) -> tuple[bytes, str] | None:
        """The content at an address behind the token, and its type; None where there is none."""
        folders = self.server.folders
        match parts:
            case [name] if name in PAGE:
                file, kind = PAGE[name]
                return files("mim.lab.watch").joinpath("templates", file).read_bytes(), kind
            case ["runs.json"]:
                return _json(folders.overview())
            case ["charts", run]:
                charts = folders.charts(run)
                return None if charts is None else _json(charts)
            case ["pictures", run, kind, name]:
                picture = folders.picture(run, kind, name)
                return None if picture is None else (picture, "image/png")
        return None

    def _send_error(self, status: HTTPStatus, text: str) -> None:
        self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _json(content: Any) -> tuple[bytes, str]:
    return to_json(content).encode(), "application/json"
