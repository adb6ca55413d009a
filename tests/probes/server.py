"""A chat endpoint on this machine that speaks the protocol, and misbehaves on request."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ODD = {}
"""Ways to misbehave, by name: each is called with the handler of a request."""


class Server:
    """Answers each request with `reply(body)`: a completion, or a way to misbehave; `odd` ones are used up first."""

    def __init__(self, reply: Callable) -> None:
        self.requests, self.heads, self.paths, self.odd, self.most = [], [], [], [], 0
        self.closing, self.now, self.lock = threading.Event(), 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            closing = self.closing

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    outer.heads.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    answer = outer.odd.pop(0) if outer.odd else None
                try:
                    answer = reply(body) if answer is None else answer
                    with suppress(OSError):
                        answer(self) if callable(answer) else send(self, 200, json.dumps(answer).encode())
                finally:
                    with outer.lock:
                        outer.now -= 1

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request, client_address):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@contextmanager
def serving(reply: Callable) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(reply)
    try:
        yield server
    finally:
        server.close()


def said(text: str | None, shares: dict[str, float] | None = None) -> dict:
    """A completion that says `text`; `shares` are the probabilities of the tokens that could have come first."""
    options = [{"token": token, "logprob": math.log(p)} for token, p in (shares or {}).items()]
    logprobs = None if shares is None else {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": options}]}
    return {"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}]}


def told(shares: dict[str, float]) -> dict:
    """A completion whose text is its likeliest first token."""
    return said(max(shares, key=shares.__getitem__), shares)


def by_rubric(aligned, coherent) -> Callable:
    """Replies of a judge: one to the rubric of coherence, another to every other."""
    return lambda body: coherent if "grammar" in body["messages"][0]["content"] else aligned


def send(handler, status: int, data: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def status(code: int, data: bytes = b"", **headers: str) -> Callable:
    return lambda handler: send(handler, code, data, **headers)


def odd(function: Callable) -> Callable:
    ODD[function.__name__] = function
    return function


@odd
def hangs(handler) -> None:
    handler.closing.wait(5)


@odd
def never_ends(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.closing.is_set():
        handler.wfile.write(b" " * 65536)


@odd
def drips(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.closing.wait(0.05):
        handler.wfile.write(b" ")


@odd
def drips_headers(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.closing.wait(0.05):
        handler.wfile.write(b"X")


@odd
def breaks_off(handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


@odd
def slams(handler) -> None:
    handler.connection.shutdown(2)


@odd
def closes_one_side(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.connection.shutdown(1)


@odd
def speaks_nonsense(handler) -> None:
    handler.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")


@odd
def sends_a_page(handler) -> None:
    send(handler, 200, b"<html>Please sign in</html>", Content_Type="text/html")


@odd
def sends_half_json(handler) -> None:
    send(handler, 200, b'{"choices": [{"message"', Content_Type="application/json")


@odd
def sends_deep_json(handler) -> None:
    send(handler, 200, b"[" * 200_000)


@odd
def sends_other_json(handler) -> None:
    send(handler, 200, b'{"choices": []}')


@odd
def is_overloaded(handler) -> None:
    send(handler, 429, b"slow down", Retry_After="0")


@odd
def is_broken(handler) -> None:
    send(handler, 500, b"")
