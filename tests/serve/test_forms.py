"""What a model thinks is not what it answers."""

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
    for index, piece in ((420, "[unused16]"), (421, "[unused17]")):
        listed[str(index)] = listed["3"] | {"content": piece}
    files["config.json"]["vocab_size"] = 422
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
