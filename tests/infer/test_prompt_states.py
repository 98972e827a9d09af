"""What predictors ask of a model: hidden states of prompts, and the model's own words."""

import json

import numpy as np
import pytest

from pangu_ms.config.load import load_config
from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import train_tokenizer
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.generate import Generator
from pangu_ms.infer.prompt_states import PromptStates
from pangu_ms.infer.questions import ANSWER_TOKENS, Questions, asked_tokens
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.continuous import ShortestFirst
from pangu_ms.infer.scheduling.length_predictors import OwnAnswer, Prompt
from tests.eager import eager
from tests.models.alpha import random_parameters, small
from tests.reference.alpha_numpy import forward

CONFIG = small(num_layers=2)


class InMemory:
    """A checkpoint of random weights."""

    path, manifest = "memory", {"step": 3}

    def __init__(self, model):
        self.run = load_config("alpha/tiny", ["runtime.device=CPU", "runtime.compile_cache=false"])
        self.run = type(self.run)(**{**vars(self.run), "model": model})
        self.parameters = random_parameters(model)

    def config(self):
        return self.run

    def tensors(self, group):
        return self.parameters


def test_states_are_what_the_head_reads(mindspore_cpu):
    """Their products with the word table are the logits of the reference in float64; neither padding nor the other
    prompts of a batch matter."""
    checkpoint = InMemory(CONFIG)
    states, rng = PromptStates(checkpoint, batch_size=3), np.random.default_rng(0)
    prompts = [tuple(rng.integers(4, CONFIG.vocab_size, length).tolist()) for length in (5, 1, CONFIG.seq_length, 9, 2)]
    with eager():
        found = states(prompts)
        assert np.allclose(states(prompts[::-1])[::-1], found, atol=1e-6)
    parameters = {name: value.astype(np.float64) for name, value in checkpoint.parameters.items()}
    for prompt, state in zip(prompts, found):
        wanted = forward(CONFIG, parameters, np.array([prompt]), None)[0, -1]
        assert np.allclose(state @ parameters["word_embedding.weight"].T, wanted, atol=1e-4)
    assert (states.passes, states.tokens) == (4, 2 * sum(map(len, prompts)))
    for prompt in ((), (1,) * (CONFIG.seq_length + 1)):
        with pytest.raises(GenerationError, match=f"prompt 2: has {len(prompt)} tokens; must have 1 to"):
            states([(1,), prompt])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def class import name0: name1: name2:\n" * 50], 290, "none")


class SaysNumbers(Decoder):
    """A planted model: behind a question it says ten times the number of tokens that stood before the question, unless
    these are fewer than three; then it says "x", as it does elsewhere."""

    def __init__(self, tokenizer, question, slots=2):
        super().__init__(None, GraphShape.fitting(200, slots, 200, 16))
        self.tokenizer, self.question = tokenizer, tokenizer.encode(question)
        self.held = [[] for _ in range(slots)]
        self.begun = []

    def start(self, slot, domain=None):
        super().start(slot, domain)
        self.held[slot] = []

    def append(self, tokens, chunk=None):
        logits = np.zeros((self.shape.batch_size, 290), np.float32)
        for slot, new in [*((slot, [token]) for slot, token in tokens.items()), *([chunk] if chunk else [])]:
            if not self.held[slot]:
                self.begun.append(tuple(new))
            self.held[slot] += new
            self.lengths[slot] += len(new)
            logits[slot, self.says(self.held[slot])] = 1.0
        return logits

    def says(self, held):
        for at in range(len(held) - len(self.question) + 1):
            if held[at : at + len(self.question)] == self.question:
                words = self.tokenizer.encode(f"{10 * at}." if at > 2 else "x")
                done = len(held) - at - len(self.question)
                return words[done] if done < len(words) else self.tokenizer.eod_id
        return self.tokenizer.encode("x")[0]


def test_a_model_that_answers_numbers_is_asked_before_its_requests(tokenizer):
    question = " how long:"
    decoder = SaysNumbers(tokenizer, question)
    predictor = OwnAnswer(question, 55.0, 400.0, tokenizer.encode)
    ask = Questions(decoder, tokenizer)
    texts = ["def name0:", "class name1: import name2: def name0: def", "d"]
    ids = [tuple(tokenizer.encode_prompt(text)) for text in texts]
    wanted = [10.0 * len(one) if len(one) > 2 else 55.0 for one in ids]
    assert wanted[2] == 55.0 != wanted[0] < wanted[1]
    asked = OwnAnswer(question, 55.0, 400.0, tokenizer.encode, ask)
    assert asked.predict([Prompt(one) for one in ids]) == wanted
    assert ask.steps > 3 and ask.seconds > 0
    assert asked_tokens(predictor) == len(tokenizer.encode(question)) + ANSWER_TOKENS and asked_tokens(None) == 0
    decoder.begun.clear()
    generator = Generator(decoder, tokenizer, ShortestFirst(), predictor, prefix_cache=False)
    sampling = SamplingConfig(max_new_tokens=3, temperature=0.0)
    found = generator.generate([texts[1], texts[0]], sampling)
    assert [one.text for one in found] == ["xxx", "xxx"]
    assert len(decoder.begun) == 4, "two questions, then two requests"


def test_no_room_for_a_question(tokenizer):
    decoder = SaysNumbers(tokenizer, "?")
    long = (5,) * (200 - ANSWER_TOKENS)
    assert Questions(decoder, tokenizer)([(*long, 5), (5, 5, 5, *tokenizer.encode("?"))]) == ["", "30."]


def test_predictors_of_a_checkpoint(trained_run, records, tmp_path, capsys):
    """A probe and questions through the command line: trained, measured, used to simulate and to generate; and refused
    where the model is not given."""
    from pangu_ms.cli.main import main

    labels = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"def name{i}(", "tokens": 3 + i % 5, "template": "t"} for i in range(40)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["schedule", "train-predictor", str(labels), "--held-out", "0.3", "--json"]
    model = ["--checkpoint", str(trained_run)]
    for kind, keys in (("probe", {"passes", "prompt_tokens", "seconds"}), ("answer", {"steps", "seconds", "answered"})):
        path = str(tmp_path / f"{kind}.json")
        capsys.readouterr()
        assert main([*train, *model, "--kind", kind, "--output", path]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["cost"].keys() == keys and found["held_out"] > 3 and found["measured"]["predictor"]["acc_50"] == 1
        simulate = ["schedule", "simulate", "--lengths", str(labels), "--predictor", path, "--policy", "sjf", "--json"]
        assert main([*simulate, *model, "--max-new-tokens", "9"]) == 0
        assert json.loads(capsys.readouterr().out)["prediction"]["mae"] < 5
        assert main([*simulate, "--tokenizer", str(records.parent / "tokenizer")]) == 2
        error = capsys.readouterr().err
        assert "checkpoint" in error and error.count("\n") == 1
        generate = ["generate", str(trained_run), "--prompt", "def a(", "--prompt", "class b", "--max-new-tokens", "3"]
        assert main([*generate, "--scheduler", "sjf", "--length-predictor", path, "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    assert main([*train, "--kind", "probe", "--output", str(tmp_path / "x.json")]) == 2
    assert "needs the model; name its checkpoint with --checkpoint" in capsys.readouterr().err
