"""A model that says what a test wants to hear, token by token, without MindSpore."""

import threading

import numpy as np

from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.domains import NO_DOMAINS

SHAPE = GraphShape(batch_size=2, chunk=16, capacity=512, seq_length=512)
ANSWERS = {
    "count": " ".join(map(str, range(1, 41))),
    "html": "<script>document.title = 'taken'</script><b>bold</b> & <img src=x onerror=\"document.title = 'taken'\">",
    "你好": "你好！我是盘古。",
    "word": "x" * 160,
}
"""The answer to a message with this word; other messages are answered with themselves."""


def answer_to(text):
    """What the speaker says."""
    return next((answer for word, answer in ANSWERS.items() if word in text), f"You said: {text}")


class Speaker(Decoder):
    """Answers the last turn of the template `plain`. `hold` lets it pause until `go_on`."""

    def __init__(self, tokenizer, shape=SHAPE, domains=NO_DOMAINS):
        super().__init__(lambda *_: None, shape, domains)
        self.tokenizer, self._at, self._gate = tokenizer, -1, threading.Event()
        self.prompts = [[] for _ in range(shape.batch_size)]
        self.said = [0] * shape.batch_size
        self.heard = []
        """The texts of all prompts that were answered."""

    def hold(self, at):
        """Pause where an answer has `at` tokens."""
        self._gate.clear()
        self._at = at

    def go_on(self):
        """Do not pause any more."""
        self._at = -1
        self._gate.set()

    def start(self, slot, domain=None):
        super().start(slot, domain)
        self.prompts[slot], self.said[slot] = [], 0

    def append(self, tokens, chunk=None):
        if self._at in [self.said[slot] + 1 for slot in tokens] + [0] * bool(chunk):
            self._gate.wait(60)
        logits = np.zeros((self.shape.batch_size, self.tokenizer.vocab_size), np.float32)
        for slot in tokens:
            self.said[slot] += 1
            self.lengths[slot] += 1
        if chunk:
            self.prompts[chunk[0]] += chunk[1]
            self.lengths[chunk[0]] += len(chunk[1])
        for slot in {*tokens, *(chunk[:1] if chunk else ())}:
            logits[slot, self._next(slot)] = 100
        return logits

    def _next(self, slot):
        text = self.tokenizer.decode(self.prompts[slot])
        if not self.said[slot] and text.rstrip().endswith("assistant:"):
            self.heard.append(text)
        last = text.rpartition("user: ")[2].partition("\nassistant:")[0].strip()
        ids = self.tokenizer.encode(answer_to(last))
        return ids[self.said[slot]] if self.said[slot] < len(ids) else self.tokenizer.eot_id
