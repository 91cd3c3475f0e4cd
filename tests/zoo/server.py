"""A real HTTP server on loopback that can misbehave."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` by name; `behaviours` are used up, one a request, then it serves right.

    A behaviour is a function of (handler, content), and may call `handler.serve(content, ...)`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.behaviours, self.always, self.requests = {}, [], None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        behaviour = server.behaviours.pop(0) if server.behaviours else server.always
        content = server.files.get(self.path.lstrip("/"))
        if behaviour is not None:
            behaviour(self, content)
        elif content is None:
            self.send_error(404)
        else:
            self.serve(content)

    def serve(self, content, *, ranges=True, announce=None, stop=None, pause=0.0):
        """A right answer, but for what is asked otherwise; `stop` bytes of the body are sent, then it hangs up."""
        wanted, start = self.headers.get("Range"), 0
        if wanted and ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if announce != "nothing":
            self.send_header("Content-Length", str(len(body) if announce is None else announce))
        self.send_header("Connection", "close")
        self.end_headers()
        body = body[:stop]
        for i in range(0, len(body), 1 << 14):
            self.wfile.write(body[i : i + (1 << 14)])
            time.sleep(pause)
        self.close_connection = True


@contextmanager
def serving(**files):
    with Server() as server:
        server.files = files
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
