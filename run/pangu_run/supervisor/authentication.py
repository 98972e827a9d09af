"""Authentication of the lines that launchers send each other, by the job's secret (see job/secret.py).

Each line carries an authentication code (HMAC-SHA256). Each direction of each connection has its own key, derived from
the secret and both hello lines, which contain random numbers. So a line is valid only once, at its position, on its
connection and in its direction. Without a secret anybody can compute the key, and the code only protects against
accidental errors.
"""

import hashlib
import hmac

CODE_BYTES = 64
"""Length of the code: SHA-256 in hexadecimal digits."""


class MessageAuthenticator:
    """Signs or verifies the lines of one direction of one connection, in their order."""

    def __init__(self, secret: bytes, direction: bytes, hellos: tuple[bytes, bytes]):
        """
        Args:
            secret: the job's secret.
            direction: who writes the lines, b"leader" or b"host".
            hellos: the first lines of the connection, the leader's before the host's.
        """
        self._key = hmac.digest(secret, b"\n".join([direction, *hellos]), "sha256")
        self._count = 0

    def sign(self, text: bytes) -> bytes:
        """The next line to send: the code and the text, without a newline."""
        return self._next_code(text) + text

    def verify(self, line: bytes) -> bytes | None:
        """The text of the next line; None if its sender does not have the key, or if it is not the next line that was
        sent."""
        text = line[CODE_BYTES:]
        return text if hmac.compare_digest(line[:CODE_BYTES], self._next_code(text)) else None

    def _next_code(self, text: bytes) -> bytes:
        self._count += 1
        return hmac.new(self._key, b"%d\n" % self._count + text, hashlib.sha256).hexdigest().encode()
