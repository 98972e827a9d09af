"""`pangu chat`: a conversation on an engine, lines of a pipe, and a session in a pseudo-terminal."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pangu_ms.cli.main import main
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.serve import open as opener
from pangu_ms.serve.app import Settings
from pangu_ms.serve.conversation import Conversation
from pangu_ms.serve.engine_chat import EngineBackend
from pangu_ms.serve.server_chat import ServerBackend
from tests.serve.common import running
from tests.serve.models import model_of
from tests.serve.speaker import ANSWERS, Speaker

ROOT = Path(__file__).parents[2]


def conversation(decoder, tokenizer, max_new_tokens=512, **options):
    model = model_of(decoder, tokenizer)
    sampling = SamplingConfig(max_new_tokens, temperature=0)
    return Conversation(EngineBackend(model, Engine(decoder, tokenizer), sampling), **options)


def say(chat, text, **options):
    """The answer, and the text that was streamed."""
    pieces = []
    answer = chat.ask(text, lambda reasoning, content: pieces.append(content), **options)
    return answer, "".join(pieces)


def test_turns(tokenizer):
    speaker = Speaker(tokenizer)
    chat = conversation(speaker, tokenizer, system="Be brief.")
    answer, streamed = say(chat, "count")
    assert answer.text == streamed == ANSWERS["count"] and answer.finish_reason == "stop"
    assert say(chat, "你好")[1] == ANSWERS["你好"]
    words = re.findall("Be brief|count|20 21|你好", speaker.heard[-1])
    assert words == ["Be brief", "count", "20 21", "你好"]
    assert [one["role"] for one in chat.all_messages()] == ["system", *("user", "assistant") * 2]


def test_the_oldest_turns_are_dropped(tokenizer):
    """So that there is room for an answer; what is kept fits, and begins with a question."""
    speaker = Speaker(tokenizer, GraphShape(1, 16, 256, 256))
    chat = conversation(speaker, tokenizer, system="Be brief.")
    dropped = [say(chat, f"number {i}")[0].dropped for i in range(12)]
    assert [number for number in dropped if number] and dropped[0] == 0
    assert all(number % 2 == 0 for number in dropped)
    assert sum(number > 0 for number in dropped) <= 4  # several at a time
    last = speaker.heard[-1]
    assert "Be brief." in last and "number 11" in last and "number 10" in last and "number 0" not in last
    assert chat.messages[0]["role"] == "user" and chat.messages[-1]["content"] == "You said: number 11"
    assert all(len(tokenizer.encode(text)) <= 256 - 64 + 8 for text in speaker.heard)
    # A message that is too long by itself changes nothing.
    before = list(chat.messages)
    with pytest.raises(GenerationError, match="the context has 256; shorten them"):
        say(chat, "x" * 300)
    assert chat.messages == before


def test_stopping(tokenizer):
    chat = conversation(Speaker(tokenizer), tokenizer)
    steps = []
    answer, streamed = say(chat, "count", stopped=lambda: steps.append(1) or len(steps) > 12)
    assert answer.finish_reason == "cancelled" and streamed == answer.text
    assert ANSWERS["count"].startswith(streamed) and "1 2 3" in streamed and "20" not in streamed
    assert chat.messages[-1] == {"role": "assistant", "content": streamed}
    assert not chat.backend.engine.busy
    # Before the first text: as if it had not been asked.
    before = list(chat.messages)
    assert say(chat, "again", stopped=lambda: True)[1] == ""
    assert chat.messages == before and not chat.backend.engine.busy


def test_the_history_is_not_computed_again(decoder, tokenizer):
    """On a compiled model with one slot of several in use; texts are those of a chat without the cache."""
    texts = {}
    for cache in (True, False):
        model = model_of(decoder, tokenizer)
        engine = Engine(decoder, tokenizer, prefix_cache=cache)
        chat = Conversation(EngineBackend(model, engine, SamplingConfig(8, temperature=0)))
        turns = [say(chat, text)[0] for text in ("def alpha", "p", "return gamma")]
        texts[cache] = [turn.text for turn in turns]
        if cache:
            assert turns[0].reused_tokens == 0
            # All whole chunks of 16 tokens of the last prompt; perhaps some of its answer, too.
            for earlier, later in zip(turns, turns[1:]):
                assert later.reused_tokens >= earlier.prompt_tokens // 16 * 16 >= 16
    assert texts[True] == texts[False]


@pytest.fixture
def piped(tokenizer, monkeypatch, capfd):
    """A function from standard input and arguments to (exit code, stdout, stderr)."""

    def run(content, *arguments, model=("toy",)):
        speaker = Speaker(tokenizer)
        monkeypatch.setattr(opener, "open_model", lambda name, *_: model_of(speaker, tokenizer, name))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code = main(["chat", *model, *arguments])
        return code, *capfd.readouterr()

    return run


def test_lines_of_a_pipe(piped, tmp_path):
    saved = tmp_path / "chat.json"
    lines = f"\ufeff你好\r\n\nhi\n//quit\n/system Be brief.\n/save {saved}\n/quit\nnever\n"
    code, out, err = piped(lines.encode(), "--verbose")
    assert code == 0
    assert out == f"{ANSWERS['你好']}\nYou said: hi\nYou said: /quit\n{saved}: 7 messages\n"
    assert len(re.findall(r"pangu chat: \d+ prompt tokens, 0 of them reused; \d+ new ones\n", err)) == 3
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert content["model"] == "toy" and content["messages"][0] == {"role": "system", "content": "Be brief."}
    assert content["messages"][1] == {"role": "user", "content": "你好"}


@pytest.mark.parametrize(
    "content, said",
    [
        (b"hi\n\xff\n", "standard input: line 2 is not UTF-8"),
        (b"/sing\n", "/sing: no such command; /help lists them; write a message that begins so as //sing"),
        (b"/save\n", "/save: names no file"),
        (b"/save %s\n" % __file__.encode(), "exists; nothing is overwritten"),
        (b"x" * 600 + b"\n", "the context has 512; shorten them"),
    ],
)
def test_a_mistake_in_a_pipe_ends_it(piped, content, said):
    code, out, err = piped(content + b"never\n")
    assert code == 2 and said in err and err.count("\n") == 1 and "never" not in out


def test_commands(piped):
    code, out, err = piped(b"/help\ncount\n/clear\nhi\n", "--max-new-tokens", "40", "--system", "S")
    assert code == 0 and "/save FILE" in out and out.endswith("You said: hi\n")
    assert err.count("the answer was cut off: no more tokens") == 1


@pytest.mark.parametrize("option", [["--chunk", "8"], ["--tokenizer", "x"], ["runtime.device=CPU"]])
def test_what_a_package_has_itself(tmp_path, option, capsys):
    (tmp_path / "run.pyz").touch()
    assert main(["chat", str(tmp_path), *option]) == 2
    assert f"{option[0]}: a package" in capsys.readouterr().err


@pytest.fixture(scope="module")
def speaking(tokenizer):
    """A server of the speaker."""
    speaker = Speaker(tokenizer, GraphShape(2, 16, 256, 256))
    with running(model_of(speaker, tokenizer, "talker"), settings=Settings(api_keys=["secret"])) as server:
        server.speaker = speaker
        yield server


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_text("secret\n")
    return ["--api-key-file", str(path)]


def test_a_chat_with_a_server(speaking, key, piped, tmp_path):
    """As one with an engine in this process; older turns are dropped where the server's context ends."""
    saved = tmp_path / "chat.json"
    lines = f"\u4f60\u597d\nhi\n/save {saved}\ncount\n"
    command = ["--url", speaking.url, *key, "--temperature", "0", "--system", "Be brief.", "--verbose"]
    code, out, err = piped(lines.encode(), *command, model=[])
    assert code == 0 and out == f"{ANSWERS['你好']}\nYou said: hi\n{saved}: 5 messages\n{ANSWERS['count']}\n"
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert content["model"] == "talker" and content["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "Be brief." in speaking.speaker.heard[-1] and "You said: hi" in speaking.speaker.heard[-1]
    assert len(re.findall(r"prompt tokens, \d+ of them reused; \d+ new ones", err)) == 3
    chat = Conversation(ServerBackend(f"{speaking.url}/v1/", "talker", {"temperature": 0}, "secret"), "Be brief.")
    dropped = [say(chat, f"number {i}")[0].dropped for i in range(12)]
    assert any(dropped) and chat.messages[-1]["content"] == "You said: number 11"
    assert "Be brief." in speaking.speaker.heard[-1] and "number 0" not in speaking.speaker.heard[-1]
    before = list(chat.messages)
    with pytest.raises(GenerationError, match="maximum context length"):
        say(chat, "x" * 300)
    assert chat.messages == before
    steps = []
    answer, streamed = say(chat, "count", stopped=lambda: steps.append(1) or len(steps) > 6)
    assert answer.finish_reason == "cancelled" and streamed == answer.text and ANSWERS["count"].startswith(streamed)
    assert speaking.idle()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--url", "URL"], "Incorrect or missing API key"),
        (
            ["--url", "URL", "KEY", "--model", "other"],
            "--model other: the server has no such model; name one of talker",
        ),
        (["--url", "URL", "KEY", "--chunk", "8"], "--chunk: is the server's at --url; leave it out"),
        (["--url", "URL", "KEY", "--top-p", "3"], "top_p=3.0: must be in (0, 1]"),
        (["--url", "ftp://a"], "--url ftp://a: is no address; write it as http://HOST:PORT"),
        (["--url", "http://a:x"], "write it as http://HOST:PORT"),
        (
            ["--url", "http://127.0.0.1:1"],
            "http://127.0.0.1:1: Connection refused; start the server, or name another one",
        ),
        (["toy", "--url", "URL"], "toy: the server at --url has its own models"),
        (["toy", "--model", "a"], "--model: needs --url URL"),
        ([], "CHECKPOINT is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_with_a_server(speaking, key, piped, options, said):
    words = []
    for word in options:
        words += key if word == "KEY" else [speaking.url if word == "URL" else word]
    code, out, err = piped(b"hi\n", *words, model=[])
    assert code == 2 and not out and said in err and err.count("\n") == 1


EVENT = json.dumps({"choices": [{"delta": {"content": "half"}, "finish_reason": None}]})
ANSWERED = [
    (b"data: %s\n\n" % EVENT.encode(), "the server has left in the middle of its answer"),
    (b"data: {\n\n", "the server's stream is no JSON"),
    (b"data: []\n\n", "is not of OpenAI's API"),
    (b'data: {"error": {"message": "no memory"}}\n\n', "the server: no memory"),
]


def test_servers_that_fail():
    """In the middle of an answer; the chat is as before."""
    contents = iter([b"<html>", *(answer for answer, _ in ANSWERED)])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(next(contents) if self.path == "/other/v1/models" else b'{"data": [{"id": "m"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(next(contents))

        def answer(self, content):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(GenerationError, match="/other/v1/models gives no list of models"):
                ServerBackend(f"{url}/other")
            chat = Conversation(ServerBackend(url))
            for _, said in ANSWERED:
                with pytest.raises(GenerationError, match=said):
                    say(chat, "hi")
                assert not chat.messages
        finally:
            server.shutdown()


class Typist:
    """Types into a program in a pseudo-terminal."""

    def __init__(self, *command, **environment):
        self._master, slave = pty.openpty()
        self.child = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT), **environment},
            preexec_fn=self._own_terminal,
        )
        os.close(slave)
        self.text = ""

    @staticmethod
    def _own_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C is a signal to the child

    def type(self, text):
        """Write to the terminal."""
        os.write(self._master, text.encode())

    def wait(self, text, seconds=60):
        """Read until this text comes; returns what came with it."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert select.select([self._master], [], [], max(0, end - time.monotonic()))[0], self.text
            self.text += os.read(self._master, 4096).decode(errors="replace")
        before, _, self.text = self.text.partition(text)
        return before + text

    def press_until(self, key, text):
        """Press a key until this text comes; see `interrupt`."""
        end = time.monotonic() + 60
        while text not in self.text and time.monotonic() < end:
            self.type(key)
            while text not in self.text and select.select([self._master], [], [], 2)[0]:
                self.text += os.read(self._master, 4096).decode(errors="replace")
        self.wait(text)

    def interrupt(self):
        """Press Ctrl-C until the program ends: readline does not notice a signal that comes just before it waits."""
        end = time.monotonic() + 60
        while self.child.poll() is None and time.monotonic() < end:
            self.type("\x03")
            time.sleep(0.5)

    def end(self, seconds=60):
        """The exit code."""
        code = self.child.wait(seconds)
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.text += os.read(self._master, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        os.close(self._master)
        return code


@pytest.fixture
def typist(records, tmp_path):
    begun = []

    def begin(*arguments):
        command = (sys.executable, "-m", "tests.serve.chat_child", str(records.parent / "tokenizer"), *arguments)
        begun.append(Typist(*command, XDG_CACHE_HOME=str(tmp_path)))
        return begun[-1]

    yield begin
    for one in begun:
        if one.child.poll() is None:
            os.kill(one.child.pid, signal.SIGKILL)
            one.child.wait()


def test_a_session_in_a_terminal(typist, tmp_path):
    """Ctrl-C stops the answer, then the line, then the program; errors do not end it; lines are kept for the next."""
    first = typist()
    first.wait("> ")
    first.type("hello there\n")
    first.wait("You said: hello there\r\n")
    first.wait("> ")
    first.type("count\n")
    first.wait("1 2 3")
    first.type("\x03")
    assert "40" not in first.wait("> ")
    first.type("/sing\n")
    first.wait("/sing: no such command")
    first.wait("> ")
    first.type(f"/save {tmp_path}/chat.json\n")
    first.wait(": 4 messages")
    first.wait("> ")
    first.type("half a li")
    first.wait("half a li")
    first.press_until("\x03", "Ctrl-C again ends the chat")
    first.wait("> ")
    first.interrupt()
    assert first.end() == 130
    stopped = json.loads((tmp_path / "chat.json").read_text())["messages"][-1]["content"]
    assert ANSWERS["count"].startswith(stopped) and stopped != ANSWERS["count"]
    history = tmp_path / "pangu_ms" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.read_text().splitlines()[:2] == ["hello there", "count"]

    second = typist()
    second.wait("> ")
    second.type("\x1b[A\x1b[A\x1b[A\x1b[A\n")  # four lines up
    second.wait("You said: hello there\r\n")
    second.wait("> ")
    second.type("\x04")
    assert second.end() == 0


def test_no_history_and_the_second_ctrl_c_in_an_answer(typist, tmp_path):
    """It ends the program."""
    one = typist("--no-history")
    one.wait("> ")
    one.type("not kept\n")
    one.wait("You said: not kept")
    one.wait("> ")
    one.type("stuck count\n")
    one.wait("1 2 3 4 5 6")
    time.sleep(0.5)  # now it is stuck
    one.interrupt()
    assert one.end() == 130
    assert "again" not in one.text  # as it would be said at the prompt
    assert not (tmp_path / "pangu_ms" / "chat_history").exists()
