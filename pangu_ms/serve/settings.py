"""Limits of a server. No imports: the command line shows the defaults without the extra `serve`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What protects a server from its clients."""

    queue: int = 64
    """Continuations of each model that may wait for a slot; further requests are answered with 429."""
    queue_timeout: float = 60.0
    """Seconds after which a request that still waits for a slot is answered with 503."""
    generation_timeout: float = 600.0
    """Seconds after which a continuation ends with what it has, as if it had reached max_tokens."""
    body_mib: float = 4.0
    """Largest body of a request, in MiB."""
    body_timeout: float = 30.0
    """Seconds in which the headers of a request must arrive, and then its body."""
    send_timeout: float = 30.0
    """Seconds after which a connection is closed whose client does not read what is sent."""
    connections: int = 512
    """Open connections."""
    choices: int = 128
    """Continuations of one request: prompts times n."""
    stream_interval: float = 0.02
    """Seconds between two events of a stream, at least: tokens that come faster come together, but for the first."""
    drain_timeout: float = 30.0
    """Seconds that running requests get when the server is told to end."""
