"""Text generation: batches against single prompts, stop strings and tokens, streaming, lengths."""

import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import generate
from pangu_ms.cli.main import main
from pangu_ms.core.console import guarded
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.answers import AnswerFile
from pangu_ms.infer.generate import Generation, Prompt
from pangu_ms.infer.load import load_generator
from pangu_ms.infer.sampling import SamplingConfig

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
PROMPTS = ["def alpha_1(beta):\n", "p", "return gamma + 7"]


@pytest.fixture(scope="module")
def generator(trained_run):
    """Three sequences, and as long as the context: one compiled graph for nearly all of these tests."""
    return load_generator(open_checkpoint(trained_run), Prompt.each_of(PROMPTS, SamplingConfig(max_new_tokens=500)))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 3, "top_k": 50},
        {"temperature": 1.0, "repetition_penalty": 1.3, "top_p": 0.9},
    ],
)
def test_a_batch_equals_its_prompts_one_by_one(generator, options):
    config = SamplingConfig(max_new_tokens=10, **options)
    together = generator.generate(PROMPTS, config)
    more_than_slots = generator.generate(PROMPTS + PROMPTS[::-1], config)
    assert more_than_slots[:3] == together
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
    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_, **__: generator)
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
    monkeypatch.setattr(load, "load_decoder", lambda checkpoint, shape, *_, **__: shapes.append(shape))
    beams = SamplingConfig(max_new_tokens=6, num_beams=4, length_penalty=0.0)
    load.load_generator(open_checkpoint(trained_run), Prompt.each_of(PROMPTS, beams), batch_size=2)
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
    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_, **__: generator)
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


def test_samples_of_a_prompt_are_its_own(generator):
    """The first sample is what one sample gives, the others differ, and none depends on the other prompts."""
    config = SamplingConfig(max_new_tokens=10, num_samples=3)
    results = generator.generate(PROMPTS, config)
    assert [result.prompt for result in results] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert results[::3] == generator.generate(PROMPTS, SamplingConfig(max_new_tokens=10))
    assert len({result.token_ids for result in results[:3]}) == 3
    assert generator.generate(PROMPTS[:1], config) == results[:3]


WORDS = ["--max-new-tokens", "6", "--num-samples", "2", "--logprobs", "1"]


@pytest.fixture
def loaded(generator, monkeypatch):
    """The command takes the compiled generator."""
    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_, **__: generator)


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "seed": i}) + "\n" for i, prompt in enumerate(PROMPTS)))
    return path


def test_a_file_of_answers_goes_on_where_it_was_interrupted(
    generator, loaded, trained_run, prompt_file, tmp_path, monkeypatch, capsys
):
    """After two answers and a half, by an exception anywhere: the file is that of a run that was not interrupted."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    command = ["generate", str(trained_run), "--prompt-file", str(prompt_file), *WORDS, "--output"]
    assert main([*command, str(whole)]) == 0
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [(line["index"], line["sample"], line["prompt"]) for line in lines] == [
        (i, j, prompt) for i, prompt in enumerate(PROMPTS) for j in range(2)
    ]
    assert all(len(line["logprobs"]) == len(line["token_ids"]) for line in lines)

    each = generator.each

    def interrupted(*args, **kwargs):
        for number, one in enumerate(each(*args, **kwargs)):
            if number == 2:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(generator, "each", interrupted)
        assert main([*command, str(cut)]) == 130
    part = tmp_path / "cut.jsonl.part"
    assert not cut.exists() and len(part.read_text().splitlines()) == 3
    with part.open("a") as file:
        file.write('{"index": 2, "sam')  # a process that was killed while it wrote
    asked = []
    monkeypatch.setattr(generator, "each", lambda *a, **k: asked.append(k["only"]) or each(*a, **k))
    assert main([*command, str(cut)]) == 0
    assert len(asked[0]) == 4 and not part.exists()
    assert cut.read_bytes() == whole.read_bytes()
    assert "6 continuations, 2 of them were there" in capsys.readouterr().out


def test_answers_to_other_prompts_are_not_mixed(loaded, trained_run, prompt_file, tmp_path, capsys):
    output, part = tmp_path / "new" / "a.jsonl", tmp_path / "new" / "a.jsonl.part"
    part.parent.mkdir()
    command = ["generate", str(trained_run), "--prompt-file", str(prompt_file), *WORDS, "--output", str(output)]
    others = '{"model": "another", "prompts": "0"}\n{"index": 0, "sample": 0}\n'
    for found, message in (
        (others, f"{part}: has answers to other prompts or settings, or of another model"),
        ("text\n", f"{part}: holds no answers; remove it"),
        ("text", f"{part}: holds no answers; remove it"),
    ):
        part.write_text(found)
        assert main(command) == 2
        assert message in capsys.readouterr().err and part.read_text() == found
    output.write_text("")
    assert main(command) == 2
    assert f"{output}: exists" in capsys.readouterr().err and part.read_text() == "text"


def test_an_interruption_prints_the_continuations_that_have_ended(trained_run, monkeypatch, capsys):
    def each(prompts, on_text=None, only=None):
        yield 1, 0, Generation("b", "c", (5,), "length")
        raise KeyboardInterrupt

    monkeypatch.setattr("pangu_ms.infer.load.load_generator", lambda *_, **__: SimpleNamespace(each=each))
    command = ["generate", str(trained_run), "--prompt", "a", "--prompt", "b", "--json"]
    assert guarded("pangu generate", lambda: generate.main(command[1:])) == 130
    output, error = capsys.readouterr()
    assert json.loads(output)["text"] == "c" and error.endswith("pangu generate: interrupted\n")


def test_answers_are_of_one_model_with_one_dtype_of_its_weights(trained_run, tmp_path, monkeypatch):
    """What --output compares is the checkpoint's content, wherever it is, and what changes its logits."""
    seen = []

    def stop(path, prompts, model):
        seen.append(model)
        raise GenerationError("enough")

    monkeypatch.setattr("pangu_ms.cli.generate.AnswerFile", stop)
    moved = tmp_path / "moved"
    shutil.copytree(trained_run, moved)
    for words in ([trained_run], [moved], [moved, "--weights", "int8"], [moved, "model.compute_dtype=bfloat16"]):
        assert main(["generate", *map(str, words), "--prompt", "x", "--output", str(tmp_path / "a")]) == 2
    assert seen[0] == seen[1] and len(set(seen)) == 3


def test_a_command_without_an_answer_leaves_no_file_and_one_at_a_time_writes(tmp_path):
    path, part = tmp_path / "new" / "a.jsonl", tmp_path / "new" / "a.jsonl.part"
    with pytest.raises(KeyboardInterrupt), AnswerFile(path, [Prompt("x", SamplingConfig())], "model"):
        assert part.exists()
        raise KeyboardInterrupt
    assert not part.exists() and not path.exists()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        with pytest.raises(GenerationError, match=f"{part}: another process writes it; wait for it"):
            AnswerFile(path, [Prompt("x", SamplingConfig())], "model")
        other.communicate("\n")
    part.write_text('{"model": "another", "prompts": "0"}\n')  # killed before its first answer
    prompt = Prompt("x", SamplingConfig(), id="\ud800")
    with AnswerFile(path, [prompt], "model") as answers:
        answers.add(0, 0, Generation("x", "y", (1,), "length"))
    assert json.loads(path.read_text())["id"] == "\ud800" and not part.exists()


def test_no_prompts_are_told(trained_run):
    with pytest.raises(GenerationError, match="no prompts; give at least one"):
        load_generator(open_checkpoint(trained_run), [])


def test_options_that_would_do_nothing_or_mix_texts_are_refused(trained_run, prompt_file, capsys):
    prompt_file.write_text('{"prompt": "x", "num_samples": 3}\n')
    assert main(["generate", str(trained_run), "--prompt-file", str(prompt_file), "--stream"]) == 2
    assert "--stream: 3 continuations; texts of several would mix" in capsys.readouterr().err
    assert main(["generate", str(trained_run), "--prompt", "x", "--logprobs", "1"]) == 2
    assert "--logprobs 1: only JSON shows them; add --json or --output FILE" in capsys.readouterr().err
    assert main(["generate", str(trained_run), "--prompt", "x", "--length-predictor", "lengths.json"]) == 2
    assert "lengths.json: --scheduler fcfs does not use lengths; add one that does" in capsys.readouterr().err
