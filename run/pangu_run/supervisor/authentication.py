"""What keeps strangers out of a job: its secret, which all its launchers have, and the code (HMAC-SHA256) that each
line between them carries.

The key of each direction of each connection is made of the secret and of both first lines, which hold random numbers: a
line counts once, at its place, on the connection and in the direction that it was written for. Without a secret the key
is known to everybody, and the code protects against accidents alone.
"""

import hashlib
import hmac

CODE_BYTES = 64


class Seal:
    """The codes of one direction of one connection, line by line."""

    def __init__(self, secret: bytes, direction: bytes, hellos: tuple[bytes, bytes]):
        """
        Args:
            direction: who writes the lines.
            hellos: the first lines of the connection, in an order that both sides agree on; each holds a random number
                of its writer.
        """
        self._key = hmac.digest(secret, b"\n".join([direction, *hellos]), "sha256")
        self._count = 0

    def sealed(self, text: bytes) -> bytes:
        """The next line to send, without its end."""
        return self._code(text) + text

    def opened(self, line: bytes) -> bytes | None:
        """What the next line says; None where it is not from who has the key, or not the next one."""
        text = line[CODE_BYTES:]
        return text if hmac.compare_digest(line[:CODE_BYTES], self._code(text)) else None

    def _code(self, text: bytes) -> bytes:
        self._count += 1
        return hmac.new(self._key, b"%d\n" % self._count + text, hashlib.sha256).hexdigest().encode()
