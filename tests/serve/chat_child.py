"""`pangu chat` with a model that says what a test wants to hear: `python -m tests.serve.chat_child TOKENIZER ...`."""

import sys
import time

from pangu_ms.cli.main import entry
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.serve import open as opener
from tests.serve.models import model_of
from tests.serve.speaker import Speaker


class Slow(Speaker):
    """After twelve tokens each takes its time, so that somebody can stop it; very long if it is asked to be stuck."""

    def append(self, tokens, chunk=None):
        if any(self.said[slot] > 12 for slot in tokens):
            time.sleep(300 if "stuck" in self.tokenizer.decode(self.prompts[0]) else 0.2)
        return super().append(tokens, chunk)


if __name__ == "__main__":
    tokenizer = Tokenizer.load(sys.argv[1])
    opener.open_model = lambda name, *_: model_of(Slow(tokenizer), tokenizer, name)
    sys.argv[1:] = ["chat", "toy", *sys.argv[2:]]
    entry()
