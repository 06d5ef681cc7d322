"""As much of a W&B server as a run talks to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RUN = {
    "id": "b", "name": "abc", "displayName": "abc", "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "p", "name": "layerzoo", "entity": {"id": "e", "name": "e"}}}
_ANSWER = json.dumps({"data": {
    "viewer": {"id": "u", "username": "u", "email": "u@u", "admin": False, "entity": "e", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None, "features": []},
    "entity": {"id": "e", "name": "e", "organization": None}, "model": None, "project": None, "upsertBucket": {"bucket": _RUN, "inserted": True},
    "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.path, sent))
        silent = self.server.behaviour == "silent" or (self.server.behaviour == "slow" and self.server.over.wait(0.5))
        if silent:
            self.server.over.wait(100)
            return
        answer, code = (b"{}", 401) if self.server.behaviour == "refuses" else (_ANSWER if "graphql" in self.path else b"{}", 200)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *args) -> None:
        pass


def serve(behaviour: str) -> ThreadingHTTPServer:
    """A server on this machine that "answers", "refuses" each key, answers "slow", or is "silent"; its behaviour may be set anew, and `seen` is what it was sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.behaviour, server.seen, server.over = True, behaviour, [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
