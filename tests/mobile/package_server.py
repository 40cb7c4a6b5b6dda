"""A web server with a package on it, which tests can make misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class PackageServer:
    """`files` by name, to be changed at will; `asked` is each request's name and Range."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: dict[str, int] = {}  # the connection ends after so many bytes
        self.silent: set[str] = set()  # nothing comes, nor does the connection end
        self.url = ""
        self.over = threading.Event()


@contextmanager
def serve(folder: Path) -> Iterator[PackageServer]:
    """The files of `folder` at `url`, which has no slash at its end."""
    server = PackageServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/a%20package/")
            wanted = self.headers["Range"]
            server.asked.append((name, wanted))
            if name in server.silent:
                server.over.wait()
            elif name in server.files:
                self.send(server.files[name], wanted, server.cut.get(name))
            else:
                self.send_error(404)

        def send(self, content: bytes, wanted: str | None, end: int | None) -> None:
            span = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            start = int(span[1]) if span else 0
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:end])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_port}/a%20package"
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
