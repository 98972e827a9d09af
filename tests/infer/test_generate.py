"""Text generation: batches against single prompts, stop strings and tokens, streaming, lengths."""

import dataclasses
import io
import json

import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli.main import main
from pangu_ms.infer.sampling import SamplingConfig

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
PROMPTS = ["def alpha_1(beta):\n", "p", "return gamma + 7"]


@pytest.fixture(scope="module")
def generator(trained_run):
    """Three sequences, and as long as the context: one compiled graph for nearly all of these tests."""
    from pangu_ms.infer.load import load_generator

    return load_generator(open_checkpoint(trained_run), PROMPTS, SamplingConfig(max_new_tokens=500))


@pytest.fixture(scope="module")
def generator_of_two(generator):
    """Its decoder takes two sequences at a time: the prompts are two batches."""
    from pangu_ms.infer.decoder import Decoder
    from pangu_ms.infer.generate import Generator

    class OfTwo(Decoder):
        """The last row of the graph stays unused."""

        def __init__(self, decoder):
            self.whole, self.shape = decoder, dataclasses.replace(decoder.shape, batch_size=2)
            self.domains = decoder.domains

        def prefill(self, prompts, domains=()):
            assert 1 <= len(prompts) <= 2
            return self.whole.prefill(prompts, domains)

        def step(self, tokens):
            return self.whole.step(tokens)

    return Generator(OfTwo(generator.decoder), generator.tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 3, "top_k": 50},
        {"temperature": 1.0, "repetition_penalty": 1.3, "top_p": 0.9},
    ],
)
def test_a_batch_equals_its_prompts_one_by_one(generator, generator_of_two, options):
    config = SamplingConfig(max_new_tokens=10, **options)
    together = generator.generate(PROMPTS, config)
    two_batches = generator_of_two.generate(PROMPTS, config)
    assert [r.token_ids for r in together] == [r.token_ids for r in two_batches]
    assert generator.generate(PROMPTS[:1], config) == together[:1]


def test_seeds_differ_and_repeat(generator):
    texts = [generator.generate(PROMPTS, SamplingConfig(max_new_tokens=10, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_streamed_pieces_joined_are_the_text(generator):
    config, pieces = SamplingConfig(max_new_tokens=12, temperature=1.2), {}
    results = generator.generate(PROMPTS, config, lambda i, text: pieces.setdefault(i, []).append(text))
    assert ["".join(pieces.get(i, [])) for i in range(3)] == [r.text for r in results]
    assert any(len(p) > 1 for p in pieces.values())


def test_a_stop_text_is_cut_off_and_never_streamed(generator):
    config = SamplingConfig(max_new_tokens=12, temperature=0)
    whole = generator.generate(PROMPTS, config)[0].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    shown = []
    result = generator.generate(
        PROMPTS[:1],
        SamplingConfig(max_new_tokens=12, temperature=0, stop=(stop, "zzz")),
        lambda i, text: shown.append(text),
    )[0]
    assert result.text == whole[: whole.index(stop)] == "".join(shown)
    assert result.finish_reason == "stop" and len(result.token_ids) < 12


def test_beams_end_at_a_stop_text_as_sampling_does(generator):
    """Neither the text nor the tokens behind it are kept."""
    plain = generator.generate(PROMPTS[:1], SamplingConfig(max_new_tokens=10, num_beams=2))[0]
    stop = plain.text[len(plain.text) // 2 : len(plain.text) // 2 + 2]
    shown = []
    config = SamplingConfig(max_new_tokens=10, num_beams=2, stop=(stop, "zzz"))
    result = generator.generate(PROMPTS[:1], config, lambda i, text: shown.append(text))[0]
    assert result.text == plain.text[: plain.text.index(stop)] == "".join(shown)
    assert result.finish_reason == "stop" and len(result.token_ids) < len(plain.token_ids)
    assert result.token_ids == plain.token_ids[: len(result.token_ids)]
    decode = generator.tokenizer.decode
    assert stop in decode(list(result.token_ids), continuation=True)
    assert stop not in decode(list(result.token_ids[:-1]), continuation=True)


def test_a_stop_token_ends_one_sequence_and_not_its_neighbours(generator, monkeypatch):
    config = SamplingConfig(max_new_tokens=8, temperature=0)
    plain = generator.generate(PROMPTS, config)
    stop_id = plain[0].token_ids[2]
    monkeypatch.setattr(generator.tokenizer, "stop_ids", (stop_id,))
    stopped = generator.generate(PROMPTS, config)
    for before, after in zip(plain, stopped):
        end = before.token_ids.index(stop_id) + 1 if stop_id in before.token_ids else None
        assert after.token_ids == before.token_ids[:end]
        assert after.finish_reason == ("stop" if end else "length")


def test_the_context_s_end_is_a_length_stop(generator, monkeypatch):
    config = SamplingConfig(max_new_tokens=500, temperature=0)
    monkeypatch.setattr(generator.tokenizer, "stop_ids", ())
    result = generator.generate(PROMPTS[:1], config)[0]
    assert result.finish_reason == "length"
    assert len(generator.tokenizer.encode(PROMPTS[0])) + len(result.token_ids) == 32


def test_more_new_tokens_than_the_context_has_room_for(generator, trained_run, capsys, caplog, monkeypatch):
    """The text ends where the context is full, and a line says so."""
    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_: generator)
    words = ["--prompt", "print(", "--json", "--max-new-tokens", "9999", "--temperature", "0"]
    assert main(["generate", str(trained_run), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] == "length" and len(result["token_ids"]) < 32
    (told,) = [record.getMessage() for record in caplog.records if "context" in record.getMessage()]
    assert (
        told
        == f"prompt 1: ends after {len(result['token_ids'])} of max_new_tokens=9999, where the context of 32 tokens is"
        " full"
    )


def test_as_many_rows_as_beams_are_loaded(trained_run, monkeypatch):
    """Be there fewer prompts, and a smaller batch."""
    from pangu_ms.infer import load

    shapes = []
    monkeypatch.setattr(load, "load_decoder", lambda checkpoint, shape, config: shapes.append(shape))
    beams = SamplingConfig(max_new_tokens=6, num_beams=4, length_penalty=0.0)
    load.load_generator(open_checkpoint(trained_run), PROMPTS, beams, batch_size=2)
    assert [shape.batch_size for shape in shapes] == [4]


def test_beams_never_score_below_greedy(generator):
    from pangu_ms.infer.beam import beam_search

    beams = SamplingConfig(max_new_tokens=6, num_beams=3, length_penalty=0.0)
    ids = generator.tokenizer.encode(PROMPTS[0])
    best = beam_search(generator.decoder, ids, beams, frozenset())
    greedy = beam_search(generator.decoder, ids, SamplingConfig(max_new_tokens=6), frozenset())[0]
    assert best[0].log_probability >= greedy.log_probability - 1e-6
    assert len({h.tokens for h in best}) == 3
    assert generator.generate(PROMPTS, beams)[0].text


def test_the_command_reads_prompts_from_everywhere(generator, trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_: generator)
    (tmp_path / "p.txt").write_text("def a\nprint(\n")
    (tmp_path / "p.jsonl").write_text('"def a"\n{"prompt": "print("}\n')
    outputs = []
    for words in (
        ["--prompt", "def a", "--prompt", "print("],
        ["--prompt-file", str(tmp_path / "p.txt")],
        ["--prompt-file", str(tmp_path / "p.jsonl")],
    ):
        assert (
            main(["generate", str(trained_run), *words, "--temperature", "0", "--max-new-tokens", "5", "--json"]) == 0
        )
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert outputs[0] == outputs[1] == outputs[2] and [r["prompt"] for r in outputs[0]] == ["def a", "print("]
    standard_input = io.TextIOWrapper(io.BytesIO(b"def a\n"))
    monkeypatch.setattr("sys.stdin", standard_input)
    words = ["--stream", "--temperature", "0", "--max-new-tokens", "5"]
    assert main(["generate", str(trained_run), *words]) == 0
    assert capsys.readouterr().out == "def a" + outputs[0][0]["text"] + "\n"
