"""JSON of a user or a crash: a ValueError says in a few words what is wrong."""

import json

import pytest

from pangu_run import small_json

REFUSED = {
    "brackets": ("[" * 200_000, "nested too deeply"),
    "braces": ('{"a":' * 200_000, "nested too deeply"),
    "NaN": ('{"a": NaN}', "NaN is no number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is no number"),
    "too large": ('{"a": 1e999}', "larger than any number"),
    "many digits": ('{"a": 1' + "0" * 400 + "}", "401 digits"),
    "more digits than Python takes": ('{"a": 1' + "0" * 9000 + "}", "9,001 digits"),
    "a key twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands twice"),
    "cut off": ('{"a": ', "Expecting value"),
    "nothing": ("", "Expecting value"),
    "no UTF-8": (b'{"a": "\xff"}', "codec can't decode"),
}


@pytest.mark.parametrize("content, problem", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(content, problem):
    with pytest.raises(ValueError) as error:
        small_json.parse(content)
    assert problem in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200


def test_what_is_read_is_what_json_reads():
    text = '{"a": [1, 2.5, -3e8, null, true, "\\u6625"], "b": {"a": {}}, "model_max_length": 1000000000000000019884624838656}'
    assert small_json.parse(text) == json.loads(text)
    assert small_json.parse(text.encode("utf-8-sig")) == json.loads(text)
    assert small_json.parse('{"a": 1e999}', finite=False)["a"] > 1e308


def test_files(tmp_path):
    with pytest.raises(small_json.Missing, match="No such file"):
        small_json.read_object(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "zero"):
        (tmp_path / "zero").exists() or (tmp_path / "zero").symlink_to("/dev/zero")
        with pytest.raises(ValueError, match="not an ordinary file"):
            small_json.read_bytes(path)
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(ValueError, match="a list, not an object"):
        small_json.read_object(tmp_path / "list")
    with pytest.raises(ValueError, match="more than 2 bytes"):
        small_json.read_bytes(tmp_path / "list", 2)
