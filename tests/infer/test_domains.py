"""Generation with a model that tells domains apart: each sequence of a batch has its own."""

import json

import numpy as np
import pytest

import pangu_ms
from pangu_ms.cli.main import main
from pangu_ms.infer.generate import Prompt
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scoring import Item, Scorer
from tests.eager import eager
from tests.export.common import export_without_kernels, load_packages_once, replay_here, reseal
from tests.models.sigma import CODE, LAW, TEXT, save_sigma

pytestmark = pytest.mark.usefixtures("compiled_models")
PROMPT = "def alpha_1(beta):"
GREEDY = ["--prompt", PROMPT, "--max-new-tokens", "6", "--temperature", "0", "--json"]
NAMES = ["text", "code", "law"]


@pytest.fixture(scope="module")
def sigma(records, tmp_path_factory):
    return save_sigma(tmp_path_factory.mktemp("sigma"), records, num_layers=2)


@pytest.fixture(scope="module")
def generator(sigma):
    from pangu_ms.infer.load import load_generator

    return load_generator(sigma, Prompt.each_of([PROMPT] * 3, SamplingConfig(max_new_tokens=32)), chunk=8)


@pytest.fixture(scope="module")
def texts(generator):
    """The greedy continuation of the prompt in each domain, from one batch."""
    results = generator.generate([PROMPT] * 3, SamplingConfig(max_new_tokens=6, temperature=0), domains=NAMES)
    return {name: list(result.token_ids) for name, result in zip(NAMES, results)}


def test_cached_logits_of_a_mixed_batch_are_those_of_whole_sequences(sigma, generator):
    """Prompts of different lengths and domains, and three more tokens."""
    import mindspore as ms

    from pangu_ms.checkpoint.model import load_model

    random, decoder = np.random.default_rng(0), generator.decoder
    prompts, tokens = [random.integers(0, 384, n).tolist() for n in (3, 10, 17)], random.integers(0, 384, (3, 3))
    domains = [LAW, TEXT, CODE]
    found = [decoder.prefill(prompts, domains)] + [decoder.step(row.astype(np.int32)) for row in tokens]
    ids, model = np.zeros((3, 32), np.int32), load_model(sigma, sigma.config()).set_train(False)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) + 3] = [*prompt, *tokens[:, row]]
    arrays = (ids, np.tile(np.arange(32, dtype=np.int32), (3, 1)), np.zeros_like(ids))
    with eager():
        whole = model(*map(ms.Tensor, arrays), None, ms.Tensor(np.array(domains, np.int32))).asnumpy()
    for step, logits in enumerate(found):
        expected = [whole[row, len(prompt) - 1 + step] for row, prompt in enumerate(prompts)]
        assert np.allclose(logits, expected, atol=1e-4)


def test_scores_are_of_the_item_s_domain(sigma, generator):
    """Those of whole sequences; a prefix that was computed for one domain is not that of another."""
    import mindspore as ms

    from pangu_ms.checkpoint.model import load_model

    random, scorer = np.random.default_rng(1), Scorer(generator.decoder, generator.tokenizer, slot=1)
    prefix, continuations = random.integers(0, 384, 12).tolist(), [random.integers(0, 384, n).tolist() for n in (1, 7)]
    items = [Item.choice(prefix, continuations, domain) for domain in (LAW, TEXT, CODE, LAW)]
    scores, model = dict(scorer.score_all(items)), load_model(sigma, sigma.config()).set_train(False)
    ids = np.array([prefix + continuations[1]], np.int32)
    arrays = (ids, np.arange(ids.size, dtype=np.int32)[None], np.zeros_like(ids))
    for index, item in enumerate(items):
        with eager():
            logits = model(*map(ms.Tensor, arrays), None, ms.Tensor(np.array([item.domain], np.int32))).asnumpy()[
                0, 11:
            ]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for continuation, score in zip(continuations, scores[index], strict=True):
            wanted = logprobs if continuation == continuations[1] else logprobs[:1]
            chosen = [wanted[i, token] for i, token in enumerate(continuation)]
            np.testing.assert_allclose(score.logprobs, chosen, atol=1e-4)
    assert scorer.counts.computed_tokens == 3 * 11 + 4 * (1 + 7)
    assert len({score[0].logprobs for score in scores.values()}) == 3


def test_a_batch_of_all_domains_equals_its_prompts_one_by_one(generator, texts):
    config = SamplingConfig(max_new_tokens=6, temperature=0)
    for name in NAMES:
        (alone,) = generator.generate([PROMPT], config, domains=[name])
        assert list(alone.token_ids) == texts[name]
    assert len({tuple(ids) for ids in texts.values()}) == 3
    (default,) = generator.generate([PROMPT], config)
    assert list(default.token_ids) == texts["text"]


def test_beams_are_of_the_prompt_s_domain(generator, texts):
    """One beam is greedy search."""
    beams = SamplingConfig(max_new_tokens=4, num_beams=2, length_penalty=0.0)
    (law,) = generator.generate([PROMPT], beams, domains=["law"])
    (code,) = generator.generate([PROMPT], beams, domains=["code"])
    assert law.token_ids != code.token_ids
    decoder, ids = generator.decoder, generator.tokenizer.encode_prompt(PROMPT)
    for domain, result in ((LAW, law), (CODE, code)):
        scores = [
            _log_probability(decoder, ids, tokens, domain) for tokens in (result.token_ids, texts[NAMES[domain]][:4])
        ]
        assert scores[0] >= scores[1] - 1e-5


def _log_probability(decoder, prompt, tokens, domain):
    from pangu_ms.infer.sampling import log_softmax

    total, logits = 0.0, decoder.prefill([prompt], [domain])
    for token in tokens:
        total += log_softmax(logits[0])[token]
        logits = decoder.step(np.array([token], np.int32))
    return total


EXPORT = ["--batch-size", "3", "--max-length", "32", "--chunk", "8", "--json"]


def test_the_commands_and_the_package(sigma, generator, texts, tmp_path, capsys, monkeypatch):
    """--domain, domains of a file of prompts, the API, and a package of all domains: with one decoder, and the package
    verified in this process."""
    for module in ("infer.load", "export.write"):
        monkeypatch.setattr(f"pangu_ms.{module}.load_decoder", lambda *_, **__: generator.decoder)
    monkeypatch.setattr("pangu_ms.export.write.replay_in_fresh_process", replay_here)
    load_packages_once(monkeypatch)
    export_without_kernels(monkeypatch)
    monkeypatch.setattr("pangu_ms.export.write.VERIFIED_STEPS", 8)
    prompts = [{"prompt": PROMPT, "domain": "law"}, PROMPT, {"prompt": PROMPT, "domain": "text"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    words = [*GREEDY[2:], "--prompt-file", str(tmp_path / "p.jsonl"), "--domain", "code"]
    assert _ids(capsys, "generate", str(sigma.path), *words) == [texts["law"], texts["code"], texts["text"]]
    sampling = SamplingConfig(max_new_tokens=6, temperature=0)
    results = pangu_ms.generate(sigma.path, [PROMPT] * 3, sampling, domain=["law", "code", "law"])
    assert [list(result.token_ids) for result in results] == [texts[name] for name in ("law", "code", "law")]
    assert main(["export", str(sigma.path), *EXPORT, "--output", str(tmp_path / "package")]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["domains"], manifest["default_domain"]) == (NAMES, "text")
    assert manifest["inputs"]["domain"] == ["int32", [3]] and manifest["verified"]["max_difference"] <= 1e-4
    assert _ids(capsys, "run-mindir", str(tmp_path / "package"), *words) == [texts["law"], texts["code"], texts["text"]]
    file = tmp_path / "package/manifest.json"
    forged = json.loads(file.read_text())
    del forged["domains"], forged["default_domain"]
    file.write_text(json.dumps(forged))
    reseal(tmp_path / "package")
    assert main(["run-mindir", str(tmp_path / "package"), *GREEDY]) == 2
    assert "the graph itself has other shapes" in capsys.readouterr().err


@pytest.mark.slow
def test_an_extracted_model_generates_and_scores_as_the_whole_one(sigma, texts, records, tmp_path, capsys):
    """The records are of the domain code."""
    assert main(["sigma", "extract", str(sigma.path), "--domain", "code", "--output", str(tmp_path / "code")]) == 0
    capsys.readouterr()
    assert _ids(capsys, "generate", str(tmp_path / "code"), "--chunk", "8", *GREEDY) == [texts["code"]]
    scores = []
    for path in (sigma.path, tmp_path / "code"):
        assert main(["eval", str(path), "--data", str(records), "--domain", "code", "--no-baselines", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1] and scores[0]["tokens"] > 100


@pytest.mark.slow
def test_a_package_of_one_domain_is_of_the_extracted_model(sigma, texts, tmp_path, capsys):
    assert main(["export", str(sigma.path), *EXPORT, "--output", str(tmp_path / "code"), "--domain", "code"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["domains"] == ["code"] and manifest["model"]["num_experts"] == 3
    assert _ids(capsys, "run-mindir", str(tmp_path / "code"), *GREEDY) == [texts["code"]]


def _ids(capsys, *words):
    assert main(list(words)) == 0
    return [json.loads(line)["token_ids"] for line in capsys.readouterr().out.splitlines()]


def test_domains_that_a_model_lacks(sigma, trained_run, tmp_path, capsys):
    cases = [
        (["generate", sigma.path, *GREEDY], "domain=zh: the model has no such domain; it has text, code, law"),
        (["export", sigma.path, "--output", tmp_path / "never"], "domain=zh: the model has no such domain; it has"),
        (["generate", trained_run, *GREEDY], "domain=zh: the model has no domains; leave it out"),
        (["export", trained_run, "--output", tmp_path / "never"], "domain=zh: the model has no domains"),
    ]
    for words, text in cases:
        assert main([*map(str, words), "--domain", "zh"]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    assert not (tmp_path / "never").exists()


def test_a_file_s_domains_are_not_read_by_a_model_without():
    from pangu_ms.cli.generate import with_default
    from pangu_ms.infer.domains import NO_DOMAINS, Domains

    prompts = Prompt.each_of(["a", "b"], SamplingConfig(), ["law", ""])
    assert [one.domain for one in with_default(prompts, None, NO_DOMAINS)] == ["", ""]
    assert [one.domain for one in with_default(prompts, "code", Domains(("law", "code")))] == ["law", "code"]
