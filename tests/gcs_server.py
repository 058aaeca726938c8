"""Object storage on this machine: the JSON API of Google Cloud Storage.

A real HTTP server with objects in memory, and as much of the API as gcsfs,
google-cloud-storage and TensorStore ask for:
https://cloud.google.com/storage/docs/json_api/v1. As there, an object
appears whole or not at all, nothing is appended to, and a directory is no
more than what the names of objects begin with.
"""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import itertools
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# JSON, media or an empty body; headers are those beside the usual.
Reply = tuple[int, bytes, dict[str, str]]


class GcsServer(ThreadingHTTPServer):
    """Serves buckets; use it as a context manager.

    Attributes:
      objects: bucket -> name -> (contents, generation).
      denied: names that nobody may write.
    """

    daemon_threads = True
    # TensorStore opens many connections at once.
    request_queue_size = 128

    def __init__(self, *buckets: str, page: int = 1000):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, tuple[bytes, int]]] = {
            bucket: {} for bucket in buckets
        }
        self.denied: re.Pattern[str] | None = None
        self.page = page
        self.lock = threading.Lock()
        self.generations = itertools.count(1)
        self.sessions: dict[str, tuple[str, str, dict, bytearray]] = {}
        self._held: re.Pattern[str] | None = None
        self._holds, self._free = threading.Event(), threading.Event()

    def __enter__(self) -> GcsServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Says nothing of clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)

    @property
    def environment(self) -> dict[str, str]:
        """What makes clients talk to this server."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            # The kind of a bucket is told over gRPC, which is not spoken here.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            # Only what a test sets itself leaves this machine.
            "NO_PROXY": "127.0.0.1",
        }

    def names(self, bucket: str) -> list[str]:
        """Of all objects."""
        with self.lock:
            return sorted(self.objects[bucket])

    def text(self, bucket: str, name: str) -> str:
        """The contents of an object."""
        return self.objects[bucket][name][0].decode()

    def hold(self, pattern: str) -> None:
        """Keeps writes of objects waiting whose name matches."""
        self._holds.clear()
        self._free.clear()
        self._held = re.compile(pattern)

    def wait(self, seconds: float) -> None:
        """Until such a write waits."""
        assert self._holds.wait(seconds), "nothing was written"

    def drop(self) -> None:
        """Lets go of them; they are not written."""
        self._held = None
        self._free.set()

    def put(self, bucket: str, name: str, data: bytes, query: dict) -> Reply:
        """Writes an object, if its preconditions hold."""
        held = self._held
        if held is not None and held.search(name):
            self._holds.set()
            self._free.wait()
            return _json({"error": {"code": 503, "message": "dropped"}}, 503)
        if self.denied is not None and self.denied.search(name):
            return _json({"error": {"code": 403, "message": "no right"}}, 403)
        with self.lock:
            if not self.meets(bucket, name, query):
                return _json({"error": {"code": 412}}, 412)
            generation = next(self.generations)
            self.objects[bucket][name] = bytes(data), generation
        return _json(self.describe(bucket, name))

    def meets(self, bucket: str, name: str, query: dict) -> bool:
        """Whether the object is of the generation that is asked for."""
        now = self.objects[bucket].get(name, (b"", 0))[1]
        wanted = query.get("ifGenerationMatch")
        unwanted = query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == now) and (
            unwanted is None or int(unwanted) != now
        )

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        """The metadata of an object."""
        data, generation = self.objects[bucket][name]
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(digest).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, bucket: str, query: dict) -> Reply:
        """One page of names, cut at the delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        end = query.get("endOffset")
        most = min(int(query.get("maxResults", self.page)), self.page)
        found: dict[str, bool] = {}
        answer: dict[str, Any] = {"kind": "storage#objects"}
        for name in sorted(self.objects[bucket]):
            if not name.startswith(prefix) or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            cut = bool(delimiter) and delimiter in rest
            if cut:
                name = prefix + rest.partition(delimiter)[0] + delimiter
            if name < first or name in found:
                continue
            if len(found) == most:
                answer["nextPageToken"] = name
                break
            found[name] = cut
        items = [
            self.describe(bucket, name)
            for name, cut in found.items()
            if not cut
        ]
        if items:
            answer["items"] = items
        if any(found.values()):
            answer["prefixes"] = [name for name, cut in found.items() if cut]
        return _json(answer)


class _Handler(BaseHTTPRequestHandler):
    server: GcsServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        # Names come quoted, with their slashes.
        parts = [urllib.parse.unquote(x) for x in url.path.split("/")[1:]]
        try:
            status, data, headers = self._route(parts, query, body)
        except KeyError as error:
            message = {"code": 404, "message": f"No such object: {error}"}
            status, data, headers = _json({"error": message}, 404)
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except ConnectionError:
            # A client that was killed.
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer

    def _route(self, parts: list[str], query: dict, body: bytes) -> Reply:
        if parts[0] in ("upload", "download"):
            kind, *parts = parts
            if kind == "upload":
                return self._upload(parts[3], query, body)
        match self.command, parts[2:]:
            case "GET", ["b", bucket]:
                _ = self.server.objects[bucket]
                known = {"kind": "storage#bucket", "name": bucket}
                return _json(known | {"hierarchicalNamespace": {}})
            case "GET", ["b", bucket, "o"]:
                with self.server.lock:
                    return self.server.list(bucket, query)
            case "GET", ["b", bucket, "o", name]:
                return self._get(bucket, name, query)
            case "DELETE", ["b", bucket, "o", name]:
                with self.server.lock:
                    if not self.server.meets(bucket, name, query):
                        return _json({"error": {"code": 412}}, 412)
                    del self.server.objects[bucket][name]
                return 204, b"", {}
            case "POST", ["b", old, "o", source, "rewriteTo", "b", new, "o", x]:
                data, _ = self.server.objects[old][source]
                self.server.put(new, x, data, query)
                resource = self.server.describe(new, x)
                return _json({"done": True, "resource": resource})
            case "POST", ["b", bucket, "o", source, "moveTo", "o", name]:
                data, _ = self.server.objects[bucket][source]
                answer = self.server.put(bucket, name, data, query)
                del self.server.objects[bucket][source]
                return answer
        return _json({"error": {"code": 501, "message": self.path}}, 501)

    def _get(self, bucket: str, name: str, query: dict) -> Reply:
        with self.server.lock:
            data, generation = self.server.objects[bucket][name]
            if not self.server.meets(bucket, name, query):
                return 304 if "ifGenerationNotMatch" in query else 412, b"", {}
            if query.get("alt") != "media":
                return _json(self.server.describe(bucket, name))
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(data)),
        }
        wanted = re.fullmatch(
            r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")
        )
        if wanted is None:
            return 200, data, headers
        size = len(data)
        if wanted[1]:
            first = int(wanted[1])
            last = min(int(wanted[2] or size), size - 1)
        else:
            first, last = max(0, size - int(wanted[2])), size - 1
        if first > last:
            return 416, b"", {"Content-Range": f"bytes */{size}"}
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return 206, data[first : last + 1], headers

    def _upload(self, bucket: str, query: dict, body: bytes) -> Reply:
        server = self.server
        if "upload_id" in query:
            return self._resume(query["upload_id"], body)
        match query.get("uploadType"):
            case "media":
                return server.put(bucket, query["name"], body, query)
            case "multipart":
                kind = f"Content-Type: {self.headers['Content-Type']}\n\n"
                name, data = _parts(kind.encode(), body)
                return server.put(bucket, name, data, query)
            case "resumable":
                told = json.loads(body or b"{}")
                name = query.get("name") or told["name"]
                with server.lock:
                    number = str(next(server.generations))
                    server.sessions[number] = bucket, name, query, bytearray()
                host = self.headers["Host"]
                at = f"http://{host}/upload/storage/v1/b/{bucket}/o"
                return 200, b"", {"Location": f"{at}?upload_id={number}"}
        return _json({"error": {"code": 501, "message": self.path}}, 501)

    def _resume(self, number: str, body: bytes) -> Reply:
        bucket, name, query, data = self.server.sessions[number]
        if self.command == "DELETE":
            del self.server.sessions[number]
            return 499, b"", {}
        data += body
        total = self.headers.get("Content-Range", "/").rpartition("/")[2]
        if total == "*":
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"}
        del self.server.sessions[number]
        return self.server.put(bucket, name, bytes(data), query)


def _json(value: Any, status: int = 200) -> Reply:
    kind = {"Content-Type": "application/json; charset=UTF-8"}
    return status, json.dumps(value).encode(), kind


def _parts(kind: bytes, body: bytes) -> tuple[str, bytes]:
    """Name and contents of a multipart upload."""
    boundary = email.message_from_bytes(
        kind, policy=email.policy.default
    ).get_boundary()
    assert boundary is not None
    cut = re.compile(rb"\r?\n?--" + re.escape(boundary).encode() + rb"(?:--)?")
    told, data = (
        re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
        for part in cut.split(body)[1:3]
    )
    return json.loads(told)["name"], data
