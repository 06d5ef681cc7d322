"""A server of one checkpoint on the loopback, which can be told to misbehave."""

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerzoo.checkpoint import FILES, MANIFEST


@contextmanager
def serve(folder: Path, context: ssl.SSLContext | None = None) -> Iterator[type]:
    """Serves the folder under /a. `answers[name]` replaces (status, headers, body) of a file, a list of these one after another with
    None for the file itself; `asked` lists the requests, `pause` is the seconds before each eighth of a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answers, asked, pause = {}, [], 0.0

        def do_GET(self):
            name = self.path.rsplit("/", 1)[1]
            self.asked.append(self.path)
            known = self.path == f"/a/{name}" and name in (*FILES, MANIFEST)
            body = (folder / name).read_bytes() if known else b"no"
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0) if answer else None
            status, headers, body = answer or (200 if known else 404, {}, body)
            self.send_response(status)
            for key, value in ({"Content-Length": len(body)} | headers).items():
                self.send_header(key, str(value))
            self.end_headers()
            piece = -(-len(body) // 8) or 1
            for start in range(0, len(body), piece):
                time.sleep(self.pause)
                self.wfile.write(body[start : start + piece])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        if context:
            httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        httpd.handle_error = lambda *client: None  # a client that has heard enough hangs up
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        Handler.folder = folder
        Handler.url = f"https://localhost:{httpd.server_port}/a" if context else f"http://127.0.0.1:{httpd.server_port}/a"
        yield Handler
        httpd.shutdown()
