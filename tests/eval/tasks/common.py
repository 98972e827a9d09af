"""A tokenizer of characters, models that are functions of the text, and tasks as YAML."""

import hashlib
import json

import numpy as np
import yaml

from pangu_ms.eval.tasks.model import Answer
from pangu_ms.eval.tasks.run import Run, Settings, prepare
from pangu_ms.eval.tasks.task import read_task
from pangu_ms.infer.scoring import ContinuationScore, ScoredSequence


class Characters:
    """A token for each character of the alphabet, and for the pairs in `joined`, which are one token."""

    eod_id, unk_id, vocab_size = 0, 1, 70_000

    def __init__(self, joined=(), unknown="", first=()):
        self.joined, self.unknown, self.first = joined, unknown, list(first)

    def encode_prompt(self, text):
        return self.first + self.encode_batch([text])[0]

    def encode_batch(self, texts):
        return [self._ids(text) for text in texts]

    def _ids(self, text):
        ids, at = [], 0
        while at < len(text):
            pair = text[at : at + 2]
            wide = pair in self.joined
            ids.append(60_000 + self.joined.index(pair) if wide else 1 if pair[0] in self.unknown else ord(pair[0]))
            at += 1 + wide
        return ids

    def decode(self, ids):
        texts = []
        for i in ids:
            texts.append("" if i < 2 else self.joined[i - 60_000] if i >= 60_000 else chr(i))
        return "".join(texts)


class HashModel:
    """Each log-probability is a function of all tokens up to it; generated texts are one of the prompt and the seed."""

    name, digest = "hash", "0123"

    def __init__(self, window=64, tokenizer=None, salt=""):
        self.window, self.tokenizer, self.salt, self.asked = window, tokenizer or Characters(), salt, 0

    def logprob(self, tokens):
        digest = hashlib.sha256(f"{self.salt}{list(tokens)}".encode()).digest()
        return -int.from_bytes(digest[:4], "big") / 2**32 * 5 - 0.01

    def score(self, items, on_scored=lambda number: None):
        for index, item in enumerate(items):
            found = []
            for context, continuation in item.pairs:
                sequence = ScoredSequence.of(context, continuation, self.window, self.tokenizer.eod_id)
                assert len(sequence.inputs) <= self.window
                whole = [*sequence.inputs, sequence.targets[-1]]
                ends = range(sequence.first + 2, len(whole) + 1)
                values = tuple(self.logprob(whole[:end]) for end in ends)
                found.append(ContinuationScore(values, (False,) * len(values), sequence.cut))
            self.asked += 1
            yield index, found

    def generate(self, requests):
        for index, request in enumerate(requests):
            assert len(request.prompt) + request.sampling.max_new_tokens <= self.window
            seed = request.sampling.seed if request.sampling.temperature else 0
            value = np.abs(self.logprob([*request.prompt, seed, request.index]))
            self.asked += 1
            yield index, Answer(f"{value:.3f}"[: request.sampling.max_new_tokens], 3)


CHOICE = {
    "name": "colour",
    "type": "choice",
    "data": {
        "reader": "lines",
        "published": "https://example.org/colours",
        "splits": {"dev": {"files": ["colour/dev.jsonl", "colour.jsonl"], "items": 6}, "train": "TRAIN"},
    },
    "context": "{thing} is {choice}. ",
    "continuation": "{text}",
    "choices": {"labels": {0: "red", 1: "blue"}},
    "metrics": ["accuracy"],
    "shots": {"few": 3},
    "published": {"accuracy": {"2.6B": [50.5, None, 60.25]}},
    "variants": {"other": {"context": "{choice}: {thing}\n"}},
}
CHOICE["data"]["splits"]["train"] = {"files": "colour_train.jsonl"}
GENERATION = {
    "name": "ask",
    "type": "generation",
    "data": CHOICE["data"],
    "context": "Q: {question}\nA: ",
    "gold": "answers",
    "metrics": ["exact_match"],
    "shots": {"few": 2, "separator": "\n\n"},
}
ASSIGNMENT = {
    "name": "blanks",
    "type": "assignment",
    "data": CHOICE["data"],
    "context": "{left}",
    "continuation": "{choice}{right}",
    "choices": {"field": "options"},
    "blanks": "blanks",
    "metrics": ["question_accuracy"],
    "shots": {"few": 1},
}
SETTINGS = Settings((0, "few"), (0, 1, 2))
WORDS = "apple sky grass snow coal rose sea sand leaf milk".split()
TRAIN = [{"id": f"t{i}", "thing": word, "text": word[::-1], "label": i % 2} for i, word in enumerate(WORDS)]
DEV = [{"id": f"d{i}", "thing": word * 2, "text": word.upper(), "label": i % 2} for i, word in enumerate(WORDS[:6])]


def task_of(tmp_path, tree, variant=""):
    """A task that is read from a file."""
    path = tmp_path / f"{tree.get('name', 'task')}.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return read_task(path, variant)


def with_fields(tree, **fields):
    """A tree with other fields; those of mappings are replaced one by one."""
    return tree | {
        key: tree[key] | new if isinstance(new, dict) and key in tree else new for key, new in fields.items()
    }


def read_lines(path, **options):
    """The rows of a JSON-lines file: a reader."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(directory, tasks, data, settings=SETTINGS, model=None):
    model = model or HashModel()
    sections, _ = prepare(tasks, settings, data)
    with Run(directory, model, sections, 7) as opened:
        opened.ask(progress=False)
        return opened.results()
