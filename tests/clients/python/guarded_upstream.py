"""An API that answers 401 unless the one right credential arrives, exactly once and nothing beside it.

Reads one line of JSON: {"kind": "header", "name": N, "value": V}, {"kind": "basic", "user": U, "password": P} or
{"kind": "query", "name": N, "value": V}. Writes its port, then serves until its input ends.
"""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

GUARD = json.loads(sys.stdin.readline())


def is_admitted(handler):
    if GUARD["kind"] == "query":
        pairs = parse_qsl(urlsplit(handler.path).query, keep_blank_values=True)
        values = [value for name, value in pairs if name == GUARD["name"]]
        return values == [GUARD["value"]] and "Authorization" not in handler.headers
    if GUARD["kind"] == "header":
        return handler.headers.get_all(GUARD["name"]) == [GUARD["value"]]
    values = handler.headers.get_all("Authorization") or []
    if len(values) != 1 or not values[0].startswith("Basic "):
        return False
    pair = base64.b64decode(values[0].removeprefix("Basic "), validate=True).decode()
    return pair.partition(":") == (GUARD["user"], ":", GUARD["password"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        admitted = is_admitted(self)
        body = b"welcome" if admitted else b"go away"
        self.send_response(200 if admitted else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format, *args):
        pass


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
