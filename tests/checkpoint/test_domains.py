"""Models of other domains made from checkpoints: extraction, new domains, inheritance from alpha. Logits are compared
bit for bit."""

import json

import numpy as np
import pytest

import pangu_ms
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.domains import add_domain, extract
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.models.common.stacks import is_stack, members, stack_of
from tests.eager import eager
from tests.models.sigma import CODE, LAW, TEXT, save_sigma


@pytest.fixture(scope="module")
def sigma(records, tmp_path_factory):
    return save_sigma(tmp_path_factory.mktemp("sigma"), records)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, 384, (16, 32)).astype(np.int32)


def logits(checkpoint, ids, *domains):
    """Logits [B, S, V] of a checkpoint's model for each of `domains`, an index for all rows or one for each row; None
    if the model reads none."""
    from tests.models.logits import logits_of

    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    inputs, config, tensors = (ids, positions, np.zeros_like(ids)), checkpoint.config().model, checkpoint.tensors()
    extras = [() if domain is None else (np.full(len(ids), domain, np.int32),) for domain in domains]
    with eager():
        return [logits_of(config, tensors, *inputs, *extra) for extra in extras]


@pytest.fixture(scope="module")
def whole(sigma, ids, mindspore_cpu):
    """The logits of the whole model for each domain."""
    return logits(sigma, ids, TEXT, CODE, LAW)


def answer(capsys, *words):
    """The JSON that a command prints."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *words):
    """The one line of a command that is refused."""
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("drop_unused, experts", [([], 3), (["--drop-unused"], 2)], ids=["all", "used"])
def test_an_extracted_model_computes_the_same_bit_for_bit(sigma, whole, ids, tmp_path, capsys, drop_unused, experts):
    made = answer(capsys, "sigma", "extract", sigma.path, "--domain", "code", "--output", tmp_path / "c", *drop_unused)
    assert made["num_experts"] == [6, experts] and made["domain"] == "code"
    checkpoint = store.open_checkpoint(tmp_path / "c")
    model = checkpoint.config().model
    assert (model.domains, model.num_experts, model.num_slots) == (("code",), experts, 1) and checkpoint.step == 7
    assert np.array_equal(logits(checkpoint, ids, 0)[0], whole[CODE])
    assert not np.array_equal(whole[TEXT], whole[CODE])


def test_a_smaller_vocabulary_keeps_the_logits_of_its_tokens(sigma, ids, tmp_path, capsys):
    from pangu_ms.data.compress import MAP_FILE, load_vocab_map

    words = ["tokenizer", "compress", "--tokenizer", sigma.tokenizer_path(), "--vocab-size", 330]
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "def alpha_1(beta):\n    return beta + 1\n" * 5}) + "\n")
    assert main([*map(str, words), "--corpus", str(text), "--output", str(tmp_path / "compact")]) == 0
    capsys.readouterr()
    old_ids = load_vocab_map(tmp_path / "compact").old_ids
    words = ["sigma", "extract", sigma.path, "--domain", "code", "--tokenizer", tmp_path / "compact"]
    answer(capsys, *words, "--output", tmp_path / "small")
    small = store.open_checkpoint(tmp_path / "small")
    given = np.searchsorted(old_ids, old_ids[ids % 330]).astype(np.int32)
    (found,), (expected,) = logits(small, given, 0), logits(sigma, old_ids[given].astype(np.int32), CODE)
    assert np.array_equal(found, expected[..., old_ids])
    assert small.config().model.vocab_size == 330 and small.tokenizer().vocab_size == 330
    assert (small.path / "tokenizer" / MAP_FILE).exists()


def test_an_extraction_of_a_sharded_checkpoint_is_the_same(sigma, tmp_path, capsys):
    plan = ["parallel.model_parallel=2", "parallel.data_parallel=2", "parallel.optimizer_shard=true"]
    answer(capsys, "ckpt", "reshard", sigma.path, "--output", tmp_path / "ranks", *plan)
    extract(store.open_checkpoint(tmp_path / "ranks"), "code", tmp_path / "a")
    extract(sigma, "code", tmp_path / "b")
    a, b = (store.open_checkpoint(tmp_path / name).tensors() for name in "ab")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_its_files_hold_no_byte_of_another_group(sigma, tmp_path):
    """Every row of every expert and word table is looked for in all files."""
    extract(sigma, "code", tmp_path)
    files = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    own = {"experts": sigma.config().model.domain_experts(CODE), "slots": [1]}
    seen = {True: 0, False: 0}
    for name, array in members(sigma.tensors()):
        if found := stack_of(name):
            kept = found[1] in own["experts" if ".experts." in name else "slots"]
            for row in array.reshape(-1, array.shape[-1]):
                assert (row.tobytes() in files) == kept, name
                seen[kept] += 1
        elif name.endswith("routing"):
            assert array.shape == (3, 384) and not any(array[line].tobytes() in files for line in (TEXT, LAW))
    assert min(seen.values()) > 500


def test_an_extraction_reads_one_expert_after_the_other(sigma, tmp_path, monkeypatch):
    from pangu_ms.checkpoint.sharded import StoredTensor

    read, sizes = StoredTensor.read, []

    def counted(self, wanted):
        part = read(self, wanted)
        sizes.append((part.shape[0] if self.slice_shape[0] == 1 and len(self.shape) > 1 else 1, part.nbytes))
        return part

    monkeypatch.setattr(StoredTensor, "read", counted)
    extract(sigma, "code", tmp_path)
    assert max(members for members, _ in sizes) == 1 and max(size for _, size in sizes) == 4 * 384 * 32


@pytest.mark.parametrize("experts", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_new_domain_computes_what_its_parent_does_and_changes_no_other(sigma, whole, ids, tmp_path, experts):
    add_domain(sigma, "new", tmp_path, "code", num_experts=experts)
    grown = store.open_checkpoint(tmp_path)
    model = grown.config().model
    assert model.group_sizes == (2, 3, 1, experts) and model.slot_of_domain == (0, 1, 0, 2)
    assert set(np.unique(grown.tensors()["blocks.1.ffn.routing"][3])) == set(range(6, 6 + experts)) - {6, 9}
    *old, new = logits(grown, ids, TEXT, CODE, LAW, 3)
    assert all(np.array_equal(found, expected) for found, expected in zip(old, whole))
    assert np.array_equal(new, whole[CODE])
    specs, data = model.parameters(), grown.config().data
    assert {name for name, spec in specs.items() if spec.trainable} == {name for name in specs if is_stack(name)}
    assert data.mixture == {"new": 1.0}


def test_an_extracted_model_that_was_trained_comes_back_as_a_domain(sigma, whole, ids, tmp_path, capsys):
    """Its experts and its word table are those of the new domain; another shared part is refused."""
    pangu_ms.extract(sigma.path, "code", tmp_path / "code")
    extracted = store.open_checkpoint(tmp_path / "code")
    trained = {name: value * 1.5 if is_stack(name) else value for name, value in extracted.tensors().items()}
    trained["word_embedding.weight"] = trained["word_embedding.weight"] * 1.25
    store.save(tmp_path / "trained", 9, {"model": trained}, {}, extracted.config())
    words = ["sigma", "add-domain", sigma.path, "--name", "new", "--from"]
    answer(capsys, *words, tmp_path / "trained", "--output", tmp_path / "grown")
    expected = logits(store.open_checkpoint(tmp_path / "trained"), ids, 0)[0]
    text, new = logits(store.open_checkpoint(tmp_path / "grown"), ids, TEXT, 3)
    assert np.array_equal(new, expected) and np.array_equal(text, whole[TEXT])
    assert not np.array_equal(expected, whole[CODE])
    trained["blocks.0.ffn.up.weight"] = trained["blocks.0.ffn.up.weight"] * 1.5
    store.save(tmp_path / "other", 9, {"model": trained}, {}, extracted.config())
    line = refusal(capsys, *words, tmp_path / "other", "--output", tmp_path / "never")
    assert "blocks.0.ffn.up.weight is not that of" in line and not (tmp_path / "never").exists()


def test_mistakes(sigma, trained_run, tmp_path, capsys):
    out = ["--output", tmp_path / "never"]
    cases = [
        (["extract", sigma.path, "--domain", "zh"], "domain=zh: the model has no such domain; it has text, code, law"),
        (["extract", trained_run, "--domain", "code"], "model.family=alpha: has no domains"),
        (["add-domain", trained_run, "--name", "code"], "model.family=alpha: has no domains"),
        (["add-domain", sigma.path, "--name", "law"], "--name law: the model has this domain"),
        (["add-domain", sigma.path, "--name", "new", "--parent", "zh"], "domain=zh: the model has no such domain"),
        (["add-domain", sigma.path, "--name", "new", "--parent", "code", "--experts", "4"], "must be a multiple"),
        (["add-domain", sigma.path, "--name", "new", "--from", trained_run], "model.num_layers=2: must be 3"),
        (["add-domain", sigma.path, "--name", "new", "--experts", "0"], "--experts 0: must be at least 1"),
    ]
    for words, text in cases:
        assert text in refusal(capsys, "sigma", *words, *out), words
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("change, text", [("missing", "holds no routing table"), ("vocabulary", "routing table")])
def test_a_routing_table_that_is_missing_or_of_another_vocabulary(sigma, tmp_path, capsys, change, text):
    tensors = sigma.tensors()
    table = tensors.pop("blocks.1.ffn.routing")
    if change == "vocabulary":
        tensors["blocks.1.ffn.routing"] = np.ascontiguousarray(table[:, :380])
    store.save(tmp_path / "damaged", 1, {"model": tensors}, {}, sigma.config(), sigma.tokenizer_path())
    for words in (["generate", tmp_path / "damaged", "--prompt", "x"], ["sigma", "extract", tmp_path / "damaged"]):
        rest = ["--domain", "code", "--output", tmp_path / "never"] if words[0] == "sigma" else []
        assert text in refusal(capsys, *words, *rest)


@pytest.fixture(scope="module")
def upgraded(trained_run, tmp_path_factory):
    """A trained alpha, and a Sigma that inherits from it: two domains with a group and a word table each."""
    root = tmp_path_factory.mktemp("upgraded") / "sigma"
    fields = ["domains=[text, law]", "num_experts=4", "slot_of_domain=[0, 1]"]
    words = [f"model.{field}" for field in ["family=sigma", *fields]]
    assert main(["model", "upgrade", str(trained_run), *words, "--output", str(root)]) == 0
    return store.open_checkpoint(trained_run), store.open_checkpoint(root)


def test_an_upgraded_alpha_computes_the_same_for_every_domain(upgraded, ids):
    """Bit for bit, in a mixed batch too: each expert gets more rows than those that the kernels multiply one by one."""
    alpha, sigma = upgraded
    (expected,) = logits(alpha, ids, None)
    for found in logits(sigma, ids, 0, 1, np.arange(16) % 2):
        assert np.array_equal(found, expected)


def test_the_networks_of_an_alpha_become_the_experts_of_a_new_domain(upgraded, ids, tmp_path):
    """After the experts and word tables of the old domains have moved away from the alpha's."""
    alpha, sigma = upgraded
    tensors = {name: value * 1.5 if is_stack(name) else value for name, value in sigma.tensors().items()}
    store.save(tmp_path / "trained", 1, {"model": tensors}, {}, sigma.config())
    trained = store.open_checkpoint(tmp_path / "trained")
    pangu_ms.add_domain(trained.path, "new", tmp_path / "grown", donor=alpha.path, num_experts=3)
    text, new = logits(store.open_checkpoint(tmp_path / "grown"), ids, 0, 2)
    assert np.array_equal(new, logits(alpha, ids, None)[0]) and not np.array_equal(text, new)
    assert np.array_equal(text, logits(trained, ids, 0)[0])


def test_training_on_a_new_domain_changes_no_other(upgraded, ids, records, tmp_path, monkeypatch):
    """The shared parameters are frozen; the records are of the domain code. One step."""
    from pangu_ms.train.loop import train

    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)  # would compile another graph
    add_domain(upgraded[1], "code", tmp_path / "grown", "text")
    source = store.open_checkpoint(tmp_path / "grown")
    words = ["train.steps=1", "train.batch_size=4", "optimizer.warmup_steps=0", "optimizer.lr=0.01"]
    config = load_config(str(source.path / "config.yaml"), words)
    with eager():
        train(config, records, tmp_path / "run", init_from=source.path, progress=False)
    trained = store.open_checkpoint(tmp_path / "run")
    *before, parent = logits(upgraded[1], ids, 1, 0)
    *after, new = logits(trained, ids, 1, 0, 2)
    assert np.array_equal(after, [before[0], parent]) and np.abs(new - parent).max() > 1e-3
    old, now = dict(members(source.tensors())), dict(members(trained.tensors()))
    changed = {name for name in old if not np.array_equal(old[name], now[name])}
    own = {"experts": {4, 5}, "slots": {2}}
    for name in changed:
        found = stack_of(name)
        assert found and found[1] in own["slots" if ".slots." in name else "experts"], name
    assert {name for name in changed if name.endswith(("slots.2.weight", "experts.4.up.weight"))}
    moments = trained.tensors("optimizer")
    frozen = config.model.parameters().keys() - config.model.trainable_parameter_shapes().keys()
    assert not [name for name in moments if name.partition(".")[2] in frozen]


def test_a_larger_vocabulary_keeps_the_rows_of_known_pieces(trained_run, text_file, ids, tmp_path, capsys):
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.tokenizer import train_tokenizer

    texts = [document.text for document in Corpus([str(text_file)])]
    train_tokenizer([*texts, "the quick brown fox jumps over the lazy dog " * 9], 400, "none").save(tmp_path / "new")
    words = ["model", "upgrade", trained_run, "model.family=sigma", "model.domains=[code]", "model.num_experts=2"]
    made = answer(
        capsys, *words, "model.vocab_size=400", "--tokenizer", tmp_path / "new", "--output", tmp_path / "sigma"
    )
    alpha, sigma = store.open_checkpoint(trained_run), store.open_checkpoint(tmp_path / "sigma")
    old, new = alpha.tokenizer(), sigma.tokenizer()
    old_of = np.array([-1 if (i := old.id_of(new.piece_of(n))) is None else i for n in range(400)])
    known = np.flatnonzero(old_of >= 0)
    assert made["new_rows"] == 400 - len(known) > 10 and len(known) > 300
    assert not np.array_equal(old_of[known], known)  # other ids, so that a copy in the same order would be noticed
    given = known[ids % len(known)].astype(np.int32)
    (expected,), (found,) = logits(alpha, old_of[given].astype(np.int32), None), logits(sigma, given, 0)
    assert np.array_equal(found[..., known], expected[..., old_of[known]])
    rows = sigma.tensors()["word_embedding.weight"][old_of < 0]
    assert 0.015 < rows.std() < 0.025 and abs(rows.mean()) < 0.005  # init_std is 0.02


def test_upgrades_that_would_compute_something_else(trained_run, sigma, tmp_path, capsys):
    base = ["model.family=sigma", "model.domains=[code]", "model.num_experts=2"]
    cases = [
        ([*base, "model.hidden_act=gelu"], "model.hidden_act=gelu: must stay fast_gelu"),
        ([*base, "model.vocab_size=400"], "model.vocab_size=400: the checkpoint has 384: must be equal without"),
        (["--config", "moge/tiny"], "is alpha: a moge model is not made from one of another family, which"),
        (["--config", "alpha/tiny"], "--config, --data and --tokenizer are for an upgrade from alpha to sigma; leave"),
        (["--config", "sigma/tiny", "model.vocab_size=384"], "model.hidden_size=192: must stay 32"),
    ]
    for words, text in cases:
        assert text in refusal(capsys, "model", "upgrade", trained_run, *words, "--output", tmp_path / "never"), words
    assert not (tmp_path / "never").exists()


def test_a_student_of_a_sigma_keeps_its_tables(sigma, tmp_path, capsys):
    """`pangu model inherit`: one of equal size is the teacher, one of fewer neurons has fewer rows of each expert."""
    answer(capsys, "model", "inherit", sigma.path, "--output", tmp_path / "same")
    answer(capsys, "model", "inherit", sigma.path, "model.ffn_hidden_size=64", "--output", tmp_path / "thin")
    teacher, same, thin = (
        store.open_checkpoint(path).tensors() for path in (sigma.path, tmp_path / "same", tmp_path / "thin")
    )
    assert all(np.array_equal(same[name], array) and same[name].dtype == array.dtype for name, array in teacher.items())
    assert thin["blocks.1.ffn.experts.up.weight"].shape == (6, 64, 32)
    assert np.array_equal(thin["blocks.1.ffn.routing"], teacher["blocks.1.ffn.routing"])
