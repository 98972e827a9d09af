"""What a model thinks is not what it answers."""

import json
from types import SimpleNamespace

import pytest

from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.continuation import Continuation, Request
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.serve.chat_template import load_chat_template
from pangu_ms.serve.engine_thread import Update
from pangu_ms.serve.forms import ChatForm
from tests.reference.make_chat_golden import files_of
from tests.reference.make_tokenizer_golden import write_files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """openPangu's pieces around a reasoning."""
    files = files_of("openpangu")
    listed = files["tokenizer_config.json"]["added_tokens_decoder"]
    pieces = "[unused16]", "[unused17]", "[unused11]", "[unused12]"
    for index, piece in enumerate(pieces, 420):
        listed[str(index)] = listed["3"] | {"content": piece}
    files["config.json"]["vocab_size"] = 424
    directory = tmp_path_factory.mktemp("openpangu")
    write_files(files, directory)
    tokenizer = Tokenizer.load(directory)
    return SimpleNamespace(name="pangu", tokenizer=tokenizer, template=load_chat_template("auto", tokenizer))


def updates(model, ids):
    """As the engine makes them."""
    one = Continuation(Request((1,), SamplingConfig()), model.tokenizer)
    for index in ids:
        one.add(index, len(ids))
        yield Update(0, one.take(), len(one.ids), 0, one.finish_reason)


def words(model, text):
    return model.tokenizer.encode_behind_special(text)


@pytest.mark.parametrize("text", ["fox", "a\n\nb", "\u4e16\u754c"])
def test_a_reasoning_is_split_from_the_answer(model, text):
    thought, answer = words(model, text), words(model, f"so {text}")
    ids = [420, *thought, 421, *answer, 4]
    form, streamed = ChatForm(model, [Request((1,), SamplingConfig())]), []
    for update in updates(model, ids):
        form.add(update)
    message = form.answer().choices[0].message
    wanted = [model.tokenizer.decode(part, continuation=True) for part in (thought, answer)]
    assert [message.reasoning_content, message.content] == wanted
    form = ChatForm(model, [Request((1,), SamplingConfig())])
    for update in updates(model, ids):
        streamed += [event.choices[0].delta for event in form.events_of(update)]
    assert "".join(delta.reasoning_content or "" for delta in streamed) == wanted[0]
    assert "".join(delta.content or "" for delta in streamed) == wanted[1]
    assert not any(delta.reasoning_content and delta.content for delta in streamed)


CALLS = '[{"name": "weather", "arguments": {"city": "\u5317\u4eac"}}, {"name": "time", "arguments": {}}]'


def test_calls_of_tools(model):
    """Between [unused11] and [unused12]; what is no call there is a part of the answer."""
    call = [422, *words(model, CALLS), 423]
    for ids, content, number in (
        ([*words(model, "so"), *call, 4], " so", 2),
        ([420, *words(model, "fox"), 421, *call, 4], None, 2),
        ([422, *words(model, '{"name": "f"}'), 423, 4], None, 1),
        ([422, *words(model, '{"name": 3}'), 423, 4], ' {"name": 3}', 0),
        ([422, *words(model, "[1"), 4], " [1", 0),
    ):
        form = ChatForm(model, [Request((1,), SamplingConfig())], with_calls=True)
        deltas, reasons = [], []
        for update in updates(model, ids):
            form.count(update)
            form.add(update)
        message, reason = form.answer().choices[0].message, form.answer().choices[0].finish_reason
        assert (message.content, len(message.tool_calls or ())) == (content, number)
        assert reason == ("tool_calls" if number else "stop")
        form = ChatForm(model, [Request((1,), SamplingConfig())], with_calls=True)
        for update in updates(model, ids):
            for event in form.events_of(update):
                deltas.append(event.choices[0].delta)
                reasons.append(event.choices[0].finish_reason)
        assert "".join(delta.content or "" for delta in deltas) == (content or "")
        streamed = [one for delta in deltas for one in delta.tool_calls or ()]
        assert [one.index for one in streamed] == [*range(number)] and reasons[-1] == reason
        assert [one.function for one in streamed] == [one.function for one in message.tool_calls or ()]
    form = ChatForm(model, [Request((1,), SamplingConfig())], with_calls=True)
    for update in updates(model, [*call, 4]):
        form.add(update)
    calls = form.answer().choices[0].message.tool_calls
    assert [(one.type, one.function.name) for one in calls] == [("function", "weather"), ("function", "time")]
    assert json.loads(calls[0].function.arguments) == {"city": "\u5317\u4eac"} and calls[0].id != calls[1].id
    # Without tools the request gets the text.
    form = ChatForm(model, [Request((1,), SamplingConfig())])
    for update in updates(model, [*call, 4]):
        form.add(update)
    assert form.answer().choices[0].message.content == f" {CALLS}"


def test_an_answer_without_a_reasoning(model):
    form = ChatForm(model, [Request((1,), SamplingConfig())])
    for update in updates(model, [*words(model, "fox"), 4]):
        form.add(update)
    message = form.answer().choices[0].message
    assert message.reasoning_content is None and message.content == " fox"


def test_an_unfinished_reasoning(model):
    form = ChatForm(model, [Request((1,), SamplingConfig())])
    for update in updates(model, [420, *words(model, "fox")]):
        form.add(update)
    choice = form.answer().choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == (" fox", "")
    assert choice.finish_reason is None or choice.finish_reason == ""
