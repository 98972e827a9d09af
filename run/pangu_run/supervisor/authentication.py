"""Authentication of the lines that launchers send each other, by the job's secret (see job/secret.py).

Each line carries a code (HMAC-SHA256). The key of each direction of each connection is made of the secret and of both
hello lines, which hold random numbers: a line is valid once, at its position, on the connection and in the direction
that it was written for. Without a secret everybody knows the key, and the code protects against accidents alone.
"""

import hashlib
import hmac

CODE_BYTES = 64
"""SHA-256 in hexadecimal digits."""


class MessageAuthenticator:
    """Signs or verifies the lines of one direction of one connection, in their order."""

    def __init__(self, secret: bytes, direction: bytes, hellos: tuple[bytes, bytes]):
        """
        Args:
            secret: of the job.
            direction: who writes the lines, b"leader" or b"host".
            hellos: the first lines of the connection, the leader's before the host's.
        """
        self._key = hmac.digest(secret, b"\n".join([direction, *hellos]), "sha256")
        self._count = 0

    def sign(self, text: bytes) -> bytes:
        """The next line to send, without its newline."""
        return self._next_code(text) + text

    def verify(self, line: bytes) -> bytes | None:
        """The text of the next line; None where its sender does not have the key, or it is not the next line."""
        text = line[CODE_BYTES:]
        return text if hmac.compare_digest(line[:CODE_BYTES], self._next_code(text)) else None

    def _next_code(self, text: bytes) -> bytes:
        self._count += 1
        return hmac.new(self._key, b"%d\n" % self._count + text, hashlib.sha256).hexdigest().encode()
