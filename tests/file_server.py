"""A real HTTP server of a few files, good or bad at what it does."""

import contextlib
import http.server
import re
import threading


class Files:
    """What is served, and how.

    Attributes:
      contents: path -> bytes.
      ranges: whether a part may be asked for.
      cut: bytes after which each of the next connections breaks.
      status: answered instead of a file, to so many requests as it lists.
      tag: whether the version of a file is told.
      asked: (path, Range header) of each request.
    """

    def __init__(self, **contents):
        self.contents = {f"/{name}": data for name, data in contents.items()}
        self.ranges, self.tag = True, True
        self.cut, self.status, self.asked = [], [], []

    def etag(self, path):
        return f'"{hash(self.contents[path]):x}"'


@contextlib.contextmanager
def serving(files):
    """Yields the address at which `files` are served."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, files)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler, files):
    path, wanted = handler.path, handler.headers.get("Range")
    files.asked.append((path, wanted))
    if files.status:
        handler.send_error(files.status.pop(0))
        return
    if path not in files.contents:
        handler.send_error(404)
        return
    data, start, status = files.contents[path], 0, 200
    same = handler.headers.get("If-Range") == files.etag(path)
    if wanted and files.ranges and same:
        start, status = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206
        if start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) - start))
    if files.tag:
        handler.send_header("ETag", files.etag(path))
    if status == 206:
        last = len(data) - 1
        where = f"bytes {start}-{last}/{len(data)}"
        handler.send_header("Content-Range", where)
    handler.end_headers()
    part = data[start:]
    handler.wfile.write(part[: files.cut.pop(0)] if files.cut else part)
