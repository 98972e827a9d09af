"""Task files: what is read, and what is told of a wrong one in one line."""

import pytest
import yaml

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.eval.tasks import catalog
from pangu_ms.eval.tasks.task import read_task
from pangu_ms.eval.tasks.template import Template
from tests.eval.tasks.common import CHOICE, task_of, with_fields


def test_fields_and_defaults(tmp_path):
    task = task_of(tmp_path, CHOICE)
    assert task.choices.labels == {"0": "red", "1": "blue"} and task.data.evaluate == "dev" and task.version == 1
    assert task.data.splits["train"].files == ("colour_train.jsonl",) and task.normalization == "mean"
    assert task.published["accuracy"]["2.6B"] == (50.5, None, 60.25) and task.decoding.stop == ("\n",)
    assert task.cut_end, "the choice stands in the context: what is scored is the same text for all candidates"
    assert not task_of(tmp_path, with_fields(CHOICE, context="{thing}", continuation="{choice}")).cut_end
    assert task_of(tmp_path, CHOICE | {"cut": "beginning"}).cut_end is False


def test_a_variant_replaces_fields(tmp_path):
    task = task_of(tmp_path, CHOICE, "other")
    assert task.name == "colour@other" and task.context == "{choice}: {thing}\n" and task.continuation == "{text}"
    tree = with_fields(CHOICE, variants={"hot": {"decoding": {"temperature": 1}, "shots": {"seed": 3}}})
    hot = task_of(tmp_path, tree, "hot")
    assert hot.decoding.temperature == 1 and hot.shots.seed == 3 and hot.shots.few == 3, "mappings are merged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"../x": {}}}, "name='colour@../x': files are named by it; it must be letters, digits, dots"),
        ({"metric": "accuracy"}, "metric: unknown field; did you mean metrics?"),
        ({"shots": {"fwe": 3}}, "shots.fwe: unknown field; did you mean few?"),
        ({"data": {"splits": {"dev": {"file": "a"}}}}, "data.splits.dev.file: unknown field; did you mean files?"),
        ({"choices": {"label": {}}}, "choices.label: unknown field; did you mean labels?"),
        ({"fields": {"x": {"source": "a", "jion": ","}}}, "fields.x.jion: unknown field; did you mean join?"),
        ({"data": {"evaluate": "test"}}, "data.evaluate=test: must be one of splits (dev, train)"),
        ({"type": "chioce"}, "type='chioce': input should be 'choice'"),
        ({"type": "generation"}, "continuation: a generation task has none; remove it"),
        ({"continuation": ""}, "continuation: is required, since the loss is taken over it"),
        ({"choices": None}, "choices: is required for type choice"),
        ({"choices": {"labels": {}}}, "choices.labels: must be given, or field; one of the two"),
        ({"context": "{thing}"}, "neither it nor context has {choice}"),
        ({"context": "{choice} {"}, "the brace at character 10 belongs to no {name}"),
        ({"metrics": []}, "metrics: is empty; name at least one"),
        ({"decoding": {"top_p": 2}}, "decoding.top_p=2.0: must be in (0, 1]"),
        ({"published": {"accuracy": {"2.6B": [1, 2]}}}, "published.accuracy.2.6B.2: is required and was not given"),
        ({"variants": {"bad": {"gold": 3}}}, "variant bad: gold=3: input should be a valid string"),
        ({"shots": {"few": -1}}, "shots.few=-1: must not be negative"),
        ({"shots": {"max_chars": -1}}, "shots.max_chars=-1: must not be negative; 0 takes any"),
        ({"fields": {"x": {"source": "a", "last_chars": -1}}}, "fields.x.last_chars=-1: must not be negative"),
        ({"data": {"splits": {"dev": {"items": -1}}}}, "data.splits.dev.items=-1: must not be negative"),
        ({"choices": {"labels": {0: "red", 1: "red"}}}, "choices.labels: several labels have the same text"),
        ({"version": "one"}, "version='one': input should be a valid integer"),
    ],
)
def test_a_wrong_field_is_told(tmp_path, change, message):
    with pytest.raises(ConfigError) as error:
        task_of(tmp_path, with_fields(CHOICE, **change))
    assert message in str(error.value) and str(tmp_path / "colour.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_no_file_can_have(tmp_path):
    for name in ("../x", "a/b", "all", "", "a@b@c", ".a"):
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(CHOICE | {"name": name}))
        with pytest.raises(ConfigError, match="name=.*: files are named by it"):
            read_task(tmp_path / "task.yaml")


def test_a_variant_or_field_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="colour has no variant othr; did you mean other"):
        task_of(tmp_path, CHOICE, "othr")
    with pytest.raises(ConfigError, match="name: is required and was not given"):
        task_of(tmp_path, {key: CHOICE[key] for key in CHOICE if key != "name"})
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="found list; a task is a mapping"):
        catalog.task_files([tmp_path / "list.yaml"])


def test_names_of_tasks(tmp_path):
    task_of(tmp_path, CHOICE)
    own = [tmp_path / "colour.yaml"]
    assert [task.name for task in catalog.find_tasks(["colour", "colour@other"], own)] == ["colour", "colour@other"]
    with pytest.raises(
        ConfigError, match="color: no such task; did you mean colour\\? for a task of your own give its file"
    ):
        catalog.find_tasks(["color"], own)
    with pytest.raises(ConfigError, match="is named colour, as .* is"):
        catalog.task_files(own * 2)


def test_templates():
    template = Template("{{a}} {b} {c}{{")
    assert template.names == ("b", "c") and template.literals == ("{a} ", " ", "{")
    assert template.filled({"b": 1, "c": "{d}"}) == "{a} 1 {d}{", "what a field holds is no template"
    assert Template("").filled({}) == ""
    with pytest.raises(DataError, match="no field b; there are a"):
        template.filled({"a": 1})
    with pytest.raises(DataError, match=r"field b is \[1\]; a template takes texts and numbers"):
        template.filled({"b": [1], "c": ""})
    for wrong in ("{", "}", "{a.b}", "{a[0]}", "{0}", "{a!r}", "{a:>9}"):
        with pytest.raises(DataError, match="belongs to no {name}"):
            Template(wrong).names  # noqa: B018
