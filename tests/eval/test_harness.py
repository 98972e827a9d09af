"""Models of ours in lm-eval, and tasks of ours as tasks of lm-eval: both ways give the same numbers."""

import json
import math
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from pangu_ms.cli import harness
from pangu_ms.cli.main import main
from pangu_ms.core.errors import ConfigError, DataError, GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.tasks.encoding import encode_parts
from pangu_ms.infer.scoring import ContinuationScore, Item
from pangu_ms.serve.chat_template import load_chat_template
from tests.eval.toy import Toy

pytest.importorskip("lm_eval")

from pangu_ms.eval.harness import HarnessModel, LogLikelihood
from pangu_ms.eval.harness_export import export_sections
from pangu_ms.eval.harness_run import Settings, run, task_manager
from pangu_ms.eval.tasks.run import Run, prepare
from pangu_ms.eval.tasks.run import Settings as TaskSettings
from pangu_ms.eval.tasks.task import read_task

WINDOW = 64


@pytest.fixture(scope="session")
def tokenizer(records):
    return Tokenizer.load(records.parent / "tokenizer")


@pytest.fixture(scope="session")
def toy(tokenizer):
    return Toy(tokenizer, WINDOW)


def request(*args, doc_id=0, task_name="made"):
    """As lm-eval's Instance."""
    return SimpleNamespace(args=args, doc_id=doc_id, task_name=task_name)


def test_lm_eval_needs_no_torch():
    code = "import sys, pangu_ms.eval.harness_run; print({'torch', 'mindspore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


PAIRS = [
    ("def alpha", "_1(beta):"),
    ("", "def alpha"),
    ("def alpha_1(beta): ", "return"),  # the space belongs to the continuation
    ("    return gamma + 1\n" * 12, "print("),  # longer than the window
    ("print(", "d"),
]


def test_log_likelihoods_are_those_of_the_model(toy):
    lm = HarnessModel(toy, progress=False)
    answers = lm.loglikelihood([request(*pair) for pair in PAIRS])
    for (context, continuation), (total, greedy) in zip(PAIRS, answers, strict=True):
        before, scored, _ = encode_parts(toy.tokenizer, context, continuation)
        ((_, (score,)),) = toy.score([Item(((before, scored),))])
        assert total == pytest.approx(score.total, abs=1e-9) and greedy == score.is_greedy
        assert total.num_tokens == len(scored)
    assert lm.cut_contexts == 1 and lm.cut_tokens > 0


def test_an_empty_context_is_the_end_of_a_document(toy):
    tokenizer = toy.tokenizer
    ((total, _),) = HarnessModel(toy, progress=False).loglikelihood([request("", "def")])
    ((_, (score,)),) = toy.score([Item((((tokenizer.eod_id,), tokenizer.encode("def")),))])
    assert total == pytest.approx(score.total, abs=1e-9)


def test_whole_texts_are_scored_once_a_token(toy):
    texts = ["def alpha(beta):\n    return beta\n" * n for n in (0, 1, 9)]
    answers = HarnessModel(toy, progress=False).loglikelihood_rolling([request(text) for text in texts])
    assert answers[0] == 0.0
    for text, total in zip(texts[1:], answers[1:], strict=True):
        ids = toy.tokenizer.encode(text)
        # A table of pairs: only the first token of a window sees less than two tokens.
        ((_, scores),) = toy.score([Item.text(ids, WINDOW)])
        assert total.num_tokens == len(ids) == sum(len(score.logprobs) for score in scores)
        assert total == pytest.approx(sum(score.total for score in scores), abs=1e-9)
    assert len(toy.tokenizer.encode(texts[2])) > WINDOW


class WithFirst:
    """A tokenizer whose prompts begin with a token of their own, such as LLaMA's."""

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab_size, self.eod_id = tokenizer, tokenizer.vocab_size, tokenizer.eod_id
        self.encode_batch = tokenizer.encode_batch

    def encode_prompt(self, text):
        return [1, *self.tokenizer.encode(text)]


def test_texts_begin_as_prompts_do(tokenizer):
    model = Toy(WithFirst(tokenizer), WINDOW)
    (total,) = HarnessModel(model, progress=False).loglikelihood_rolling([request("def alpha")])
    ((given, _),) = HarnessModel(model, progress=False).loglikelihood([request("", "def alpha")])
    ((_, (score,)),) = model.score([Item((((1,), tokenizer.encode("def alpha")),))])
    assert total == pytest.approx(score.total, abs=1e-9) and given == pytest.approx(score.total, abs=1e-9)


def generated(toy, **settings):
    return HarnessModel(toy, progress=False).generate_until([request("def alpha", settings)])[0]


def test_continuations_end_at_stop_strings_and_are_greedy_by_default(toy):
    whole = generated(toy, max_gen_toks=20)
    assert len(whole) > 3 and whole == generated(toy, max_gen_toks=20, do_sample=False, temperature=0.7)
    stop = whole[2:4]
    assert generated(toy, until=[stop, "never"], max_gen_toks=20) == whole[: whole.find(stop)]
    assert generated(toy, until=stop, max_new_tokens=20) == whole[: whole.find(stop)]
    sampled = generated(toy, do_sample=True, temperature=1.0, max_gen_toks=20, seed=3)
    assert sampled != whole and sampled == generated(toy, do_sample=True, temperature=1.0, max_gen_toks=20, seed=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_alpha": 0.6}, "made, item 4: generation_kwargs has penalty_alpha=0.6"),
        ({"max_gen_toks": WINDOW}, "asks for 64 new tokens; the model reads 64 tokens in all"),
        ({"top_p": 2.0}, "top_p=2.0: must be in"),
    ],
)
def test_settings_that_cannot_be(toy, settings, message):
    with pytest.raises(GenerationError, match=message.replace("(", r"\(")):
        HarnessModel(toy, progress=False).generate_until([request("def", settings, doc_id=4)])


def test_continuations_that_cannot_be_scored(toy):
    lm = HarnessModel(toy, progress=False)
    with pytest.raises(DataError, match="made, item 0: the tokenizer makes no token"):
        lm.loglikelihood([request("", "")])
    with pytest.raises(GenerationError, match="a continuation has .* tokens; the model reads 64"):
        lm.loglikelihood([request("def", "return alpha\n" * 60)])
    with pytest.raises(GenerationError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "x"}])


def test_the_number_of_tokens_outlives_a_cache():
    again = pickle.loads(pickle.dumps(LogLikelihood(-2.5, 3)))
    assert again == -2.5 and again.num_tokens == 3


def test_answers_are_kept_for_a_cache_as_they_come(toy):
    kept = {}
    lm = HarnessModel(toy, progress=False)
    lm.set_cache_hook(SimpleNamespace(add_partial=lambda kind, args, answer: kept.setdefault((kind, args[0]), answer)))
    (answer,) = lm.loglikelihood([request("def", " alpha")])
    (text,) = lm.generate_until([request("def", {"max_gen_toks": 3})])
    assert kept == {("loglikelihood", "def"): answer, ("generate_until", "def"): text}


# Tasks ----------------------------------------------------------------------------------------------------------------

ROWS = [
    {"id": i, "sentence": f"def {name}_{i}(beta): return beta + {i}", "label": i % 3, "answers": [f"beta + {i}", name]}
    for i, name in enumerate(["alpha", "gamma", "delta", "beta"] * 5)
]
DATA = {
    "reader": "clue",
    "evaluate": "dev",
    "splits": {"dev": {"files": ["dev.json"]}, "train": {"files": ["train.json"]}},
}
CHOICE = {
    "type": "choice",
    "choices": {"labels": {0: "alpha", 1: "gamma gamma", 2: "d"}},
    "metrics": ["accuracy"],
    "shots": {"few": 2},
}
TASKS = {
    "behind": CHOICE | {"context": "name {choice}: ", "continuation": "{sentence}"},
    "label": CHOICE | {"context": "{sentence}\nname: ", "continuation": "{choice}"},
    "sums": CHOICE | {"context": "{sentence}\nname: ", "continuation": "{choice}", "normalization": "sum"},
    "digits": CHOICE | {"context": "{id}", "continuation": "{choice}"},
    "whole": CHOICE | {"context": "", "continuation": "{choice} is {sentence}"},
    "words": {
        "type": "perplexity",
        "context": "def ",
        "continuation": "{sentence}",
        "metrics": ["perplexity", "word_perplexity"],
    },
    "answers": {
        "type": "generation",
        "context": "{sentence}\n",
        "gold": "answers",
        "metrics": ["f1", "exact_match"],
        "decoding": {"max_new_tokens": 6, "stop": ["t", "\n"]},
        "shots": {"few": 1},
    },
    "sampled": {
        "type": "generation",
        "context": "{sentence}\n",
        "gold": "answers",
        "metrics": ["f1"],
        "decoding": {"max_new_tokens": 6, "temperature": 0.8, "top_p": 0.9},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for name, rows in (("dev", ROWS), ("train", ROWS[::-1])):
        (directory / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def made_task(directory, name, fields):
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "data": DATA} | fields))
    return read_task(path)


def both_ways(toy, data, tmp_path, names, shots=(0,), seeds=(0,)):
    """(scores of our runner, results of lm-eval) by the name of lm-eval's task, and exported tasks."""
    tasks = [made_task(tmp_path, name, TASKS[name]) for name in names]
    sections, _ = prepare(tasks, TaskSettings(tuple(shots), tuple(seeds)), data)
    exported, notes = export_sections(sections, (toy.tokenizer, toy.window))
    assert not notes
    (tmp_path / "lm_eval").mkdir()
    for one in exported:
        one.write(tmp_path / "lm_eval")
    names = [one.name for one in exported]
    manager = task_manager(names, tmp_path / "lm_eval")
    found = run(toy, names, manager, Settings(log_samples=True, bootstrap_iters=0), progress=False)
    with Run(tmp_path / "ours", toy, sections) as own:
        own.ask(progress=False)
        scores = own.results()["scores"]
    return scores, exported, found


def test_both_ways_give_the_same_numbers(toy, data, tmp_path):
    scores, exported, found = both_ways(toy, data, tmp_path, TASKS, shots=[0, 1])
    of_ours = {(score["task"], score["shots"]): score["metrics"] for score in scores}
    assert len(exported) == len(of_ours) == 2 * len(TASKS) - 2  # perplexity and sampling have no demonstrations
    for one in exported:
        name, _, shots = one.name.removeprefix("pangu_").partition("_")
        metrics = of_ours[name, int(shots[0])]
        results = found.results["results"][one.name]
        if TASKS[name]["type"] == "choice":
            assert results[f"{one.score},none"] * 100 == pytest.approx(metrics["accuracy"]["value"], abs=1e-6)
        elif TASKS[name]["type"] == "perplexity":
            assert results["token_perplexity,none"] == pytest.approx(metrics["perplexity"]["value"], rel=1e-9)
            assert results["perplexity,none"] == pytest.approx(metrics["word_perplexity"]["value"], rel=1e-9)
        else:
            for metric, value in metrics.items():
                assert results[f"{metric},none"] * 100 == pytest.approx(value["value"], abs=1e-6)


def test_candidates_get_the_same_scores(toy, data, tmp_path):
    """Not only the same decisions: the log-likelihoods of every item, and the sampled texts."""
    _, exported, found = both_ways(toy, data, tmp_path, ["behind", "digits", "sampled"])
    (path,), texts = (tmp_path / "ours/records").glob("sampled*"), found.samples[exported.pop().name]
    said = [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
    assert [sample["filtered_resps"][0] for sample in texts] == said and len(set(said)) == len(ROWS)
    for one, name in zip(exported, ["behind", "digits"], strict=True):
        ours = [json.loads(line) for line in (tmp_path / f"ours/records/{name}_0-shot.jsonl").read_text().splitlines()]
        for record, sample in zip(ours, found.samples[one.name], strict=True):
            values = [answer[0] for answer in sample["filtered_resps"]]
            assert values == pytest.approx(record["logprobs"], abs=1e-9)


def test_the_delimiter_is_empty_and_texts_are_not_templates(toy, data, tmp_path):
    """lm-eval puts a space before continuations by default, and makes a number of a context of digits."""
    task = made_task(tmp_path, "digits", TASKS["digits"])
    (one,), _ = export_sections(prepare([task], TaskSettings(), data)[0])
    assert one.config["target_delimiter"] == "" and one.config["doc_to_text"] == "context"
    assert one.rows[3]["context"] == "3"


def refusal(tmp_path, data, name, **fields):
    sections, _ = prepare([made_task(tmp_path, name, fields)], TaskSettings(), data)
    exported, (reason,) = export_sections(sections)
    assert not exported
    return reason


def test_what_lm_eval_cannot_express_is_said(data, tmp_path):
    both = CHOICE | {"context": "{choice} ", "continuation": "{choice}: {sentence}"}
    assert "differ in their contexts and in their continuations" in refusal(tmp_path, data, "both", **both)
    long = TASKS["answers"] | {"decoding": {"max_new_tokens": "answer"}}
    assert "one length for all items" in refusal(tmp_path, data, "long", **long)
    rows = [{"id": 1, "blanks": [{"before": "a"}, {"before": "b"}], "options": ["x", "y"], "label": [1, 0]}]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blanks = {
        "type": "assignment",
        "context": "{before}",
        "continuation": "{choice}",
        "choices": {"field": "options"},
        "blanks": "blanks",
        "metrics": ["question_accuracy"],
    }
    assert "all blanks of an item are filled at once" in refusal(tmp_path, tmp_path, "blanks", **blanks)
    (tmp_path / "dev.json").write_text(json.dumps({"id": 0, "sentence": "def"}) + "\n")
    assert "no item with a gold label is left" in refusal(tmp_path, tmp_path, "unlabelled", **TASKS["label"])
    (tmp_path / "dev.json").write_text(json.dumps({"id": 0, "sentence": "a\ud83d", "label": "1"}) + "\n")
    with pytest.raises(DataError, match="broken: item 1: has a lone surrogate.*; repair the data file"):
        refusal(tmp_path, tmp_path, "broken", **TASKS["behind"])


# lm-eval's own tasks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
    """Task files as a user of lm-eval writes them, in a group."""
    directory = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"print({i}) gives", "a": ["alpha", "x", f"beta {i} gamma"], "gold": i % 3} for i in range(12)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "two"):
        (directory / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {directory}/rows.jsonl}}}}\n"
            "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: gold\n"
            "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
        )
    (directory / "group.yaml").write_text(
        "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc}, {metric: acc_tokens}]\n"
    )
    return directory


class ByLength(Toy):
    """The sum of a continuation's log-likelihoods is highest for the shortest, the mean for the longest."""

    def score(self, items, on_scored=lambda number: None):
        for index, item in enumerate(items):
            lengths = [len(continuation) for _, continuation in item.pairs]
            yield index, [ContinuationScore((-1 - 1 / n,) * n, (False,) * n) for n in lengths]


def test_accuracy_by_mean_log_likelihoods_is_a_measure_of_every_choice(tokenizer, own_tasks):
    model, manager = ByLength(tokenizer, WINDOW), task_manager(["one"], own_tasks)
    found = run(model, ["one"], manager, Settings(log_samples=True), progress=False)
    for sample in found.samples["one"]:
        lengths = [len(encode_parts(tokenizer, sample["doc"]["q"], f" {choice}")[1]) for choice in sample["doc"]["a"]]
        assert sample["acc"] == (lengths.index(min(lengths)) == sample["doc"]["gold"])
        assert sample["acc_tokens"] == (lengths.index(max(lengths)) == sample["doc"]["gold"])
    results = found.results["results"]["one"]
    assert results["acc_tokens,none"] == results["acc,none"] == pytest.approx(1 / 3)
    assert {"acc_norm,none", "acc_tokens_stderr,none"} <= set(results)
    assert math.isfinite(results["acc_tokens_stderr,none"])


@pytest.mark.parametrize("delimiter", [None, "", ": "])
def test_the_delimiter_of_a_task_can_be_replaced(toy, own_tasks, monkeypatch, delimiter):
    """C-Eval and CMMLU have a space there, which Chinese has not."""
    asked, original, manager = [], toy.score, task_manager(["one"], own_tasks)
    manager.target_delimiter = delimiter
    monkeypatch.setattr(toy, "score", lambda items, on_scored: asked.extend(items) or original(items, on_scored))
    run(toy, ["one"], manager, Settings(limit=2, num_fewshot=1), progress=False)
    text = toy.tokenizer.decode([token for part in asked[0].pairs[0] for token in part])
    between = " " if delimiter is None else delimiter
    shown, item = text.split("\n\n")
    assert item == f"print(0) gives{between}alpha" and re.fullmatch(rf"print\(\d\) gives{between}\w[\w ]*", shown)


def test_groups_have_it_too(toy, own_tasks):
    found = run(toy, ["both"], task_manager(["both"], own_tasks), Settings(limit=3), progress=False)
    one, both = found.results["results"]["one"], found.results["results"]["both"]
    assert both["acc_tokens,none"] == pytest.approx(one["acc_tokens,none"])
    assert {row[0] for row in found.rows()} >= {"one", "two", "both"}


def test_unknown_tasks_and_missing_data_are_one_line(toy, own_tasks, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="--tasks on: lm-eval has no such task; did you mean one"):
        task_manager(["on"], own_tasks, defaults=False)
    (tmp_path / "gone.yaml").write_text(
        "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere/rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n"
    )
    before = toy.asked
    with pytest.raises(DataError, match="gone: .*cannot be loaded") as error:
        run(toy, ["gone"], task_manager(["gone"], tmp_path), Settings(), progress=False)
    assert "\n" not in str(error.value) and toy.asked == before


def test_tasks_that_need_a_word_of_the_user(toy, own_tasks, tmp_path):
    """Code of the model is not run unasked; and a task that is named twice counts once or not at all."""
    with pytest.raises(ConfigError, match="--tasks: Duplicate task 'one'.*name it once"):
        run(toy, ["one", "both"], task_manager(["one", "both"], own_tasks), Settings(), progress=False)
    text = (own_tasks / "one.yaml").read_text().replace("task: one", "task: risky\nunsafe_code: true")
    (tmp_path / "risky.yaml").write_text(text)
    manager = task_manager(["risky"], tmp_path)
    with pytest.raises(ConfigError, match="risky which is marked as unsafe.*; add --confirm-run-unsafe-code"):
        run(toy, ["risky"], manager, Settings(), progress=False)
    run(toy, ["risky"], manager, Settings(limit=1, confirm_run_unsafe_code=True), progress=False)


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "pangu_ms.eval.harness_run", raising=False)
    assert main(["harness", "run", "nowhere", "--tasks", "x"]) == 2
    assert 'pip install "pangu-ms[eval]"' in capsys.readouterr().err


def test_the_command_exports_and_scores(toy, data, own_tasks, tmp_path, monkeypatch, capsys):
    """Options are spelt as lm-eval spells them, too."""
    made_task(tmp_path, "behind", TASKS["behind"])
    made_task(tmp_path, "unlabelled", CHOICE | {"context": "{choice}", "continuation": "{sentence}", "gold": "none"})
    files = [f"--task-file={tmp_path}/{name}.yaml" for name in ("behind", "unlabelled")]
    output = tmp_path / "for lm_eval"
    words = ["--tasks", "behind,unlabelled", "--task_data", str(data), "--shots", "0,2", "--limit", "4"]
    assert main(["harness", "export", *words, *files, "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "pangu_behind_2_shot_seed0      4  acc_tokens" in told.out
    assert f"--include-path '{output}' --tasks pangu_tasks" in told.out, "to be pasted into a shell"
    assert "unlabelled: no item with a gold label is left" in told.err
    monkeypatch.setattr(harness, "open_model", lambda args: toy)
    words = ["model", "--tasks", "pangu_tasks", "--include_path", str(output), "--bootstrap_iters=0"]
    assert main(["harness", "run", *words, "--log_samples", "--output", str(tmp_path / "found")]) == 0
    told = capsys.readouterr()
    assert re.search(r"pangu_behind_0_shot +0 +acc_tokens +0\.\d{4}", told.out)
    results = json.loads((tmp_path / "found/results.json").read_text())
    assert results["config"]["model"] == "toy" and results["n-samples"]["pangu_behind_0_shot"]["effective"] == 4
    samples = (tmp_path / "found/samples_pangu_behind_2_shot_seed0.jsonl").read_text().splitlines()
    assert len(samples) == 4 and json.loads(samples[0])["acc_tokens"] in (0.0, 1.0)
    assert main(["harness", "run", *words, "--num-fewshot", "2"]) == 0
    assert "--num-fewshot 2: 2 tasks keep the number of demonstrations" in capsys.readouterr().err
    assert main(["harness", "run", "model", "--tasks", "one, ", "--include-path", str(own_tasks), "--json"]) == 0
    assert "acc_tokens,none" in json.loads(capsys.readouterr().out)["results"]["one"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log-samples"], "--log-samples: needs --output DIR"),
        (["--limit", "-1"], "--limit -1: must be a whole number of items"),
        (["--limit", "2.5"], "--limit 2.5: must be a whole number of items"),
        (["--num-fewshot", "-1"], "--num-fewshot -1: must not be negative"),
        (["--fewshot-as-multiturn"], "needs --apply-chat-template"),
    ],
)
def test_options_that_cannot_be(toy, own_tasks, monkeypatch, capsys, words, message):
    monkeypatch.setattr(harness, "open_model", lambda args: toy)
    assert main(["harness", "run", "model", "--tasks", "one", "--include-path", str(own_tasks), *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_chat_template_makes_the_prompts(toy, own_tasks, monkeypatch, capsys):
    asked = []
    chat = load_chat_template("plain", toy.tokenizer)
    original = toy.score
    monkeypatch.setattr(toy, "score", lambda items, on_scored: asked.append(items) or original(items, on_scored))
    run(toy, ["one"], task_manager(["one"], own_tasks), Settings(limit=1), chat, progress=False)
    before, scored = asked[0][0].pairs[0]
    text = [{"role": "user", "content": "print(0) gives"}]
    assert [*before, *scored] == chat.encode_prompt(chat.render(text) + "alpha")
    assert tuple(chat.encode_prompt(chat.render(text))) == chat.encode(text)


def test_a_run_goes_on_with_the_answers_that_a_cache_has(toy, own_tasks, tmp_path):
    manager, settings = task_manager(["one"], own_tasks), Settings(limit=2, use_cache=str(tmp_path / "cache"))
    first = run(toy, ["one"], manager, settings, progress=False).results["results"]
    asked = toy.asked
    again = run(toy, ["one"], task_manager(["one"], own_tasks), settings, progress=False).results["results"]
    assert again == first and toy.asked == asked
