"""Servers in this process, and a model whose logits need no MindSpore."""

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import numpy as np

from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.domains import NO_DOMAINS
from pangu_ms.serve.app import Settings
from pangu_ms.serve.engine_thread import EngineThread
from pangu_ms.serve.models import Models
from pangu_ms.serve.run import listen, make_server
from pangu_ms.serve.settings import Limits

SPECIAL = slice(7)  # the first pieces of our tokenizers
SHAPE = GraphShape(batch_size=2, chunk=16, capacity=96, seq_length=96)


class Toy(Decoder):
    """Its logits are random, by what a slot holds, and no text ends by itself. A step takes `delay` seconds; `fault` is
    called with its logits."""

    def __init__(self, vocab_size, shape=SHAPE, delay=0.0, fault=lambda logits, held: None, domains=NO_DOMAINS):
        super().__init__(lambda *_: None, shape, domains)
        self.vocab_size, self.delay, self.fault = vocab_size, delay, fault
        self.held = [[] for _ in range(shape.batch_size)]
        self.gate = threading.Event()
        self.gate.set()

    def start(self, slot, domain=None):
        super().start(slot, domain)
        self.held[slot] = [1000 * (domain or 0)]

    def append(self, tokens, chunk=None):
        self.gate.wait(60)
        time.sleep(self.delay)
        logits = np.zeros((self.shape.batch_size, self.vocab_size), np.float32)
        new = {slot: [token] for slot, token in tokens.items()} | ({chunk[0]: list(chunk[1])} if chunk else {})
        for slot, ids in new.items():
            self.held[slot] += ids
            self.lengths[slot] += len(ids)
            logits[slot] = 3 * np.random.default_rng(self.held[slot]).standard_normal(self.vocab_size)
            logits[slot, SPECIAL] = -30
        self.fault(logits, self.held)
        return logits


@dataclass
class Running:
    """A server."""

    url: str
    thread: EngineThread
    client: httpx.Client
    connections: set

    def post(self, path="/v1/completions", **body):
        """The answer to a JSON body."""
        return self.client.post(path, json={"model": "toy", **body})

    def idle(self, seconds=20):
        """Wait until nothing waits or runs: whether that came."""
        return wait_for(lambda: not self.thread.answers and not any(self.busy()), seconds)

    def busy(self):
        """For each slot, whether it is taken."""
        return [slot is not None for engine in self.thread.engines.values() for slot in engine.table.slots]

    def steps(self):
        """Steps that were computed."""
        return sum(engine.counts.steps for engine in self.thread.engines.values())

    def raw(self, head=b"", timeout=20):
        """A bare connection that has sent `head`."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        connection.connect()
        connection.sock.sendall(head)
        return connection.sock

    def open_stream(self, **body):
        """A bare connection on which an answer is being streamed."""
        content = json.dumps({"model": "toy", "prompt": "def", "stream": True, **body}).encode()
        return self.raw(head_of(len(content)) + content)


def head_of(length, path="/v1/completions", extra=b""):
    """The head of a request."""
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: x", b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % length]) + b"\r\n" + extra + b"\r\n"


def wait_for(condition, seconds=20):
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def running(*models, settings=None, headers=None, send_buffer=0):
    """A server of these models in a thread; `send_buffer` is the size of the kernel's buffers of its connections."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as bound:
        if send_buffer:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        settings = settings or Settings(Limits(stream_interval=0))
        server, thread = make_server(Models(models), settings, bound, lambda url: ready.set())
        runner = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        runner.start()
        try:
            assert ready.wait(400), "the server is not ready"
            with httpx.Client(base_url=url, timeout=60, headers=headers) as client:
                yield Running(url, thread, client, server.server_state.connections)
        finally:
            server.should_exit = True
            runner.join(30)
            assert not runner.is_alive()
