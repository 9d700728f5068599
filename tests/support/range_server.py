"""A real HTTP server in a process of its own: the files of a folder, with range requests, latency and faults."""

import argparse
import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FORBIDDEN = "forbidden"  # a folder that nobody may read


class Handler(BaseHTTPRequestHandler):
    """Every answer waits for the latency; each `fail_every`-th GET is a 503."""

    protocol_version = "HTTP/1.1"
    folder, latency_s, fail_every, ranges, rate = Path(), 0.0, 0, True, 0.0
    lock, gets = threading.Lock(), 0

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        time.sleep(self.latency_s)
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if body:
            with Handler.lock:
                Handler.gets += 1
                number = Handler.gets
            if self.fail_every and number % self.fail_every == 0:
                return self.say(503)
        if FORBIDDEN in path.parts:
            return self.say(403)
        if path.is_dir():
            return self.say(200, "".join(f'<a href="{each.name}">x</a>' for each in sorted(path.iterdir())).encode())
        if not path.is_file():
            return self.say(404)
        size = path.stat().st_size
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.ranges else None
        start, stop = (int(part[1]), min(int(part[2] or size) + 1, size)) if part else (0, size)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start) if body else b""
        headers = {"ETag": f'"{size}-{path.stat().st_mtime_ns}"', "Content-Type": "application/octet-stream"}
        if part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        self.say(206 if part else 200, content, headers, stop - start)

    def say(self, status: int, content: bytes = b"", headers: dict | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        step = max(1, int(self.rate / 50)) if self.rate else len(content) or 1
        for start in range(0, len(content), step):
            self.wfile.write(content[start : start + step])
            if self.rate:
                time.sleep(0.02)

    def log_message(self, format: str, *arguments: object) -> None:
        sys.stdout.write(f"{self.command} {self.path} {self.headers.get('Range', '')} {arguments[1]}\n")


@contextlib.contextmanager
def serving(folder: Path, *options: str, port: int = 0, log: Path | None = None) -> Iterator[str]:
    """The address of the folder while the server runs; `log` gets a line a request."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("a")) if log else subprocess.DEVNULL
        command = [sys.executable, "-u", __file__, str(folder), "--port", str(port), *options]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)
        try:
            yield process.stderr.readline().strip()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0, help="bytes a second of one answer")
    parser.add_argument("--no-ranges", action="store_true")
    words = parser.parse_args()
    Handler.folder, Handler.latency_s = words.folder, words.latency_ms / 1000
    Handler.fail_every, Handler.ranges, Handler.rate = words.fail_every, not words.no_ranges, words.rate
    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", words.port), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
