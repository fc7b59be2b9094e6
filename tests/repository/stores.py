"""What the tests of the repository share: SavedModels without TensorFlow, and stores to fetch them from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aioserving._proto import message_class

__all__ = [
    "Blobs",
    "contents",
    "manifest_of",
    "saved_model",
    "version_files",
    "web",
    "write_version",
]

INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"


def saved_model(*, variables: bool = True, assets: tuple[str, ...] = (), note: str = "") -> bytes:
    """A SavedModel of one meta graph, with a variable's node and the names of assets."""
    made: Any = message_class("tensorflow.SavedModel")(saved_model_schema_version=1)
    meta_graph = made.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.meta_info_def.tensorflow_version = f"2.21 {note}".strip()
    meta_graph.graph_def.node.add(name="x", op="Placeholder")
    if variables:
        meta_graph.graph_def.node.add(name="v", op="VarHandleOp")
        meta_graph.saver_def.restore_op_name = "save/restore_all"
    for name in assets:
        meta_graph.asset_file_def.add(filename=name).tensor_info.name = f"{name}:0"
    data: bytes = made.SerializeToString()
    return data


def version_files(seed: int = 0, size: int = 1000) -> dict[str, bytes]:
    """The files of a version by path, with `size` bytes of variables that depend on `seed`."""
    pattern = hashlib.sha256(str(seed).encode()).digest()
    data = b"".join(
        hashlib.blake2b(pattern + at.to_bytes(8, "little")).digest()
        for at in range(min(size, 1 << 20) // 64 + 1)
    )
    data = (data * (size // len(data) + 1))[:size]
    return {"saved_model.pb": saved_model(note=str(seed)), INDEX: b"index", DATA: data}


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """What ``sha256sum`` says of the files."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items()).encode()


def write_version(
    folder: Path, files: Mapping[str, bytes], *, manifest: bool = False, age: float = 3600
) -> Path:
    """Write a version's files, last changed `age` seconds ago."""
    for path, data in (*files.items(), *([("SHA256SUMS", manifest_of(files))] if manifest else [])):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        then = target.stat().st_mtime - age
        os.utime(target, (then, then))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a version's folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --------------------------------------------------------------------------------------------- HTTP


class Blobs:
    """Files of a web server, and what it does wrong with them.

    Attributes:
        files: contents by path.
        ranges: whether it knows ranges.
        truncate: path -> how often it breaks off in the middle.
        flip: path -> how often it sends a wrong bit.
        flip_at: path -> a byte, and how often it is sent wrong.
        vanish: paths that are listed, with their heads, and cannot be read.
        gone: paths that are listed and not there.
        hang: path -> how often it stops sending until `go_on` is set.
        delay: path -> seconds before each piece of 64 KiB.
        log: method, path and range of each request.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, *, ranges: bool = True) -> None:
        self.files = dict(files or {})
        self.ranges = ranges
        self.truncate: dict[str, int] = {}
        self.flip: dict[str, int] = {}
        self.flip_at: dict[str, tuple[int, int]] = {}
        self.vanish: set[str] = set()
        self.gone: set[str] = set()
        self.hang: dict[str, int] = {}
        self.delay: dict[str, float] = {}
        self.forbidden = 0
        self.go_on = threading.Event()
        self.sent = 0
        self.log: list[tuple[str, str, str]] = []
        self.url = ""

    def put(self, root: str, files: Mapping[str, bytes]) -> None:
        self.files.update({f"{root}/{path}": data for path, data in files.items()})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, blobs: Blobs, *arguments: Any) -> None:
        self.blobs = blobs
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        blobs = self.blobs
        path = urllib.parse.unquote(self.path).lstrip("/")
        blobs.log.append((self.command, path, self.headers.get("Range", "")))
        if blobs.forbidden:
            blobs.forbidden -= 1
            self.reply(403, b"", {})
            return
        if path.endswith("/") or not path:
            names = {
                rest.partition("/")[0] + ("/" if "/" in rest else "")
                for rest in (name[len(path) :] for name in blobs.files if name.startswith(path))
            }
            if not names:
                self.reply(404, b"", {})
                return
            links = ["../", "?C=N;O=D", *map(urllib.parse.quote, sorted(names))]
            page = "".join(f'<a href="{link}">{link}</a>\n' for link in links)
            self.reply(200, page.encode(), {"Content-Type": "text/html"})
            return
        data = blobs.files.get(path)
        if data is None or path in blobs.gone or (body and path in blobs.vanish):
            self.reply(404, b"", {})
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content-Type": "application/octet-stream"}
        asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        status, start, end = 200, 0, len(data)
        if asked and blobs.ranges:
            status, start = 206, int(asked[1])
            end = min(end, int(asked[2]) + 1) if asked[2] else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        part = data[start:end]
        if not body:
            self.reply(status, b"", {**headers, "Content-Length": str(len(part))})
            return
        if blobs.flip.get(path, 0) > 0 and part:
            blobs.flip[path] -= 1
            part = part[:-1] + bytes([part[-1] ^ 1])
        at, times = blobs.flip_at.get(path, (0, 0))
        if times > 0 and start <= at < end:
            blobs.flip_at[path] = (at, times - 1)
            part = part[: at - start] + bytes([part[at - start] ^ 1]) + part[at - start + 1 :]
        headers["Content-Length"] = str(len(part))
        cut = None
        if blobs.truncate.get(path, 0) > 0:
            blobs.truncate[path] -= 1
            cut = len(part) // 2
        stops = bool(blobs.hang.get(path, 0))
        if stops:
            blobs.hang[path] -= 1
            cut = len(part) // 2
        self.reply(status, part[:cut], headers, delay=blobs.delay.get(path, 0.0))
        if cut is not None:
            if stops:
                blobs.go_on.wait(30)
            self.close_connection = True

    def reply(self, status: int, body: bytes, headers: Mapping[str, str], delay: float = 0.0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(0, len(body), 1 << 16):
            if delay:
                threading.Event().wait(delay)
            self.wfile.write(body[at : at + (1 << 16)])
            self.blobs.sent += len(body[at : at + (1 << 16)])
        self.wfile.flush()


@contextlib.contextmanager
def web(blobs: Blobs) -> Iterator[str]:
    """Serve `blobs` over HTTP; gives the URL."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are nothing to talk about."""

    server = Server(("127.0.0.1", 0), functools.partial(_Handler, blobs))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    blobs.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield blobs.url
    finally:
        blobs.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
