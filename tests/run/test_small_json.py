"""JSON of a user or a crash: a ValueError says in a few words what is wrong."""

import json

import pytest

from pangu_ms.core import small_json

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
    text = (
        '{"a": [1, 2.5, -3e8, null, true, "\\u6625"], "b": {"a": {}}, "model_max_length":'
        " 1000000000000000019884624838656}"
    )
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


FORM = {
    "time": small_json.TIME,
    "step": (range(100), None),
    "ranks": [{"rank": range(8), "state": frozenset(("running", "ended"))}],
    "id": (str, int),
}
GOOD = {"time": 1, "ranks": [{"rank": 7, "state": "ended", "more": {}}], "id": "a"}
MISFITS = [
    ({"time": True}, "time is True"),
    ({"time": float("nan")}, "time is nan"),
    ({"time": None}, "time is None"),
    ({"time": 1e12}, "time is 1000000000000.0"),
    ({"step": 1.0}, "step is 1.0"),
    ({"step": -1}, "step is -1"),
    ({"step": 10**39}, "step is 1000"),
    ({"ranks": {}}, "ranks is dict"),
    ({"ranks": [{"rank": 1, "state": "ended"}, 3]}, r"ranks\[1\] is 3"),
    ({"ranks": [{"state": "ended"}]}, r"ranks\[0\].rank is None"),
    ({"ranks": [{"rank": 1, "state": ["ended"]}]}, r"ranks\[0\].state is list"),
    ({"ranks": [{"rank": 1, "state": "\x1b[2J\u202e"}]}, r"ranks\[0\].state is '\\x1b\[2J\\u202e'"),
    ({"id": False}, "id is False"),
]


def test_forms(tmp_path):
    assert small_json.misfit(GOOD, FORM) == small_json.misfit(GOOD | {"step": 99, "time": 1.5}, FORM) == ""
    assert small_json.misfit([], FORM) == "it is list"
    for change, says in MISFITS:
        (tmp_path / "file").write_text(json.dumps(GOOD | change))
        with pytest.raises(ValueError, match=f"^{says}"):
            small_json.read_object(tmp_path / "file", False, FORM)
