"""Domains of rows: which documents have them, how they are mixed, and what is said where they are missing."""

import collections
import hashlib
import itertools
import json
import shlex
import shutil
import types
from fractions import Fraction

import numpy as np
import pytest

from pangu_ms.cli import main as cli
from pangu_ms.config import load_config
from pangu_ms.config.schema import DataConfig
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.blocks import Block
from pangu_ms.data.corpus import UNKNOWN_DOMAIN, Corpus
from pangu_ms.data.default_corpus import standard_library_domains, standard_library_files
from pangu_ms.data.domains import require_known, require_run_domains
from pangu_ms.data.extra_inputs import SOURCES
from pangu_ms.data.loader import Loader, batch_rows, num_batches, sequential_batches
from pangu_ms.data.mixture import Schedule
from pangu_ms.data.pack import DocumentTable, RowsByDomain
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.config import ExtraInput
from tests.data.common import documents, write_jsonl

SIZES = {"code": 7, "news": 30, "poems": 11}


class Rows(RecordSet):
    """Records without files: row n holds n in all places."""

    def __init__(self, sizes=SIZES):
        self.source, self.manifest, self.num_rows = "rows", None, sum(sizes.values())
        ends = np.cumsum(list(sizes.values())).tolist()
        self.domains = {name: range(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
        self._domain_starts = np.array([rows.start for rows in self.domains.values()])

    def read_rows(self, indices):
        return np.repeat(np.asarray(indices, np.int32)[:, None], 9, axis=1)


def model_of(*domains):
    inputs = {"domain": ExtraInput(("batch",))} if domains else {}
    return types.SimpleNamespace(domains=domains, extra_inputs=lambda: inputs)


def loader_of(mixture=None, batch_size=4, rank=0, world=1, samples=None, model=None, seed=3, **options):
    data = DataConfig(mixture=mixture or {}, samples_per_domain=samples or {}, seed=seed)
    schedule = Schedule.of(data, list(SIZES))
    return Loader(
        Rows(), batch_size, seed=seed, rank=rank, world=world, schedule=schedule, model=model or model_of(), **options
    )


def stream(loader, steps, start=0):
    """Row numbers of some steps of one rank."""
    return np.concatenate([loader.row_numbers(step) for step in range(start, start + steps)])


MIXTURES = [
    [1],
    [0.4, 0.6],
    [2, 0, 1],
    [0.7, 0.1, 0.1, 0.1],
    [1, 1, 1, 97],
    [0.5, *[0.5 / 39] * 39],
    [3, 5, 7, 11, 13, 17],
    [0.123, 0.4, 0.0001, 1e-5],
]


@pytest.mark.parametrize("weights", MIXTURES, ids=lambda weights: "-".join(map(str, weights))[:20])
def test_every_prefix_has_the_shares_within_one_sample(weights):
    schedule, exact = Schedule.mixture(weights), [Fraction(str(weight)) for weight in weights]
    counts = collections.Counter()
    shares = np.array([float(weight / sum(exact)) for weight in exact])
    domains = schedule.domains_at(np.arange(30_000))
    running = np.cumsum(domains[:, None] == np.arange(len(weights)), axis=0)
    assert np.abs(running - np.arange(1, 30_001)[:, None] * shares).max() < 1
    for position, domain in enumerate(domains.tolist()):  # counted one by one
        if position % 7919 == 0:
            assert schedule.counts_before(position).tolist() == [counts[d] for d in range(len(weights))]
        assert position > 1000 or schedule.indices_at(np.array(position)) == counts[domain]
        counts[domain] += 1


def test_a_million_positions_have_exactly_the_weights():
    for weights in ([0.123456, 0.876544], [0.5, 0.25, 0.25, 0], [1, 2, 5], [0.000001, 0.399999, 0.6]):
        total, million = sum(weights), 1_000_000
        counts = Schedule.mixture(weights).counts_before(million)
        assert counts.tolist() == [round(weight / total * million) for weight in weights] and counts.sum() == million
    uneven = np.random.default_rng(0).dirichlet(np.full(17, 0.3)) + 1e-5  # no period of a million has these shares
    counts = Schedule.mixture(uneven.tolist()).counts_before(1_000_000)
    assert counts.sum() == 1_000_000 and np.abs(counts - 1e6 * uneven / uneven.sum()).max() < 2


def test_far_positions_need_no_walk():
    schedule, far = Schedule.mixture([0.3, 0.2, 0.5]), 10**15 + 7
    window = np.arange(far, far + 50)
    domains = schedule.domains_at(window)
    before, after = schedule.counts_before(far), schedule.counts_before(far + 50)
    assert (after - before).tolist() == np.bincount(domains, minlength=3).tolist()
    assert (schedule.indices_at(window) - before[domains]).max() == (after - before).max() - 1


def rows_one_by_one(schedule, count, seed=3):
    """The rows of a mixture, drawn one after the other with a counter for each domain."""
    used, rows = collections.Counter(), []
    for position in range(count):
        number = int(schedule.domains_at(np.array(position)))
        name = list(SIZES)[number]
        own = Rows().domains[name]
        epoch, offset = divmod(used[name], len(own))
        entropy = [seed, int(hashlib.sha256(name.encode()).hexdigest()[:16], 16), epoch]
        order = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).permutation(len(own))
        rows.append(own.start + int(order[offset]))
        used[name] += 1
    return rows


def test_rows_are_those_of_a_walk_from_the_beginning_whatever_the_batch_and_the_ranks():
    mixture = {"code": 0.5, "news": 0.3, "poems": 0.2}
    expected = rows_one_by_one(Schedule.mixture([0.5, 0.3, 0.2]), 120)
    for batch_size, world in ((4, 1), (1, 1), (2, 3), (5, 2)):
        loaders = [loader_of(mixture, batch_size, rank, world) for rank in range(world)]
        steps = 120 // (batch_size * world)
        found = [loader.row_numbers(step).tolist() for step in range(steps) for loader in loaders]
        assert sum(found, []) == expected
    other = loader_of(mixture, seed=4)
    assert stream(other, 30).tolist() != expected
    assert loader_of(mixture, shuffle=False).row_numbers(0).tolist() == [0, 7, 1, 37]


@pytest.mark.parametrize("start", [1, 6, 29, 1000])
@pytest.mark.parametrize("amounts", [{"mixture": {"code": 1, "news": 2}}, {"samples": {"code": 3, "poems": 1}}])
def test_resume_needs_the_step_alone(amounts, start):
    tail = itertools.islice(loader_of(**amounts).batches(start), 5)
    expected = [loader_of(**amounts).row_numbers(step) for step in range(start + 5)][start:]
    assert [batch.ids[:, 0].tolist() for batch in tail] == [rows.tolist() for rows in expected]


def test_each_domain_has_epochs_of_its_own_and_weight_0_reads_nothing():
    loader = loader_of({"code": 3, "news": 0, "poems": 1})
    rows = stream(loader, 77)
    of_code = rows[rows < 7]
    assert len(of_code) == 231 and not ((rows >= 7) & (rows < 37)).any() and loader.num_rows == 18
    epochs = of_code.reshape(33, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all() and len({tuple(epoch) for epoch in epochs.tolist()}) > 20
    assert (stream(loader_of({"code": 3, "poems": 1}), 77) == rows).all()  # no weight is a weight of 0


def test_without_a_mixture_the_order_is_that_of_earlier_versions():
    rows = Rows()
    for loader in (Loader(rows, 5, seed=3), loader_of(batch_size=5)):
        epochs = [np.random.Generator(np.random.Philox(np.random.SeedSequence([3, e]))).permutation(48) for e in (0, 1)]
        assert stream(loader, 19).tolist() == np.concatenate(epochs)[:95].tolist()


def test_samples_per_domain_fix_every_batch():
    samples = {"poems": 1, "code": 3}
    loaders = [loader_of(samples=samples, rank=rank, world=2) for rank in range(2)]
    whole = loader_of(samples=samples, batch_size=8)  # as the ranks of a plan read
    for step in range(20):
        parts = [loader.row_numbers(step) for loader in loaders]
        for part in parts:
            assert Rows().domain_of(part).tolist() == [0, 0, 0, 2]
        assert np.concatenate(parts).tolist() == whole.row_numbers(step).tolist()
        assert np.bincount(whole.domains_of_step(step), minlength=3).tolist() == [6, 0, 2]


@pytest.mark.parametrize("domains", [(), ("poems", "news", "code", "law")])
@pytest.mark.parametrize(
    "amounts",
    [
        {},
        {"mixture": {"code": 1, "news": 5, "poems": 1}},
        {"mixture": {"code": 60, "news": 1}},
        {"samples": {"code": 2, "news": 2}},
    ],
)
def test_domains_of_a_step_are_known_without_reading(amounts, domains, monkeypatch):
    monkeypatch.setattr(Rows, "read_rows", None)
    model, sizes, most = model_of(*domains), np.array([1, 20, 300, 4000]), [0, 0]
    loaders = [loader_of(**amounts, rank=rank, world=2, model=model) for rank in range(2)]
    names = loaders[0].domain_names
    assert names == list(domains or SIZES)
    for step in range(40):
        rows = np.concatenate([loader.row_numbers(step) for loader in loaders])
        expected = [list(SIZES)[number] for number in Rows().domain_of(rows)]
        found = loaders[1].domains_of_step(step)
        assert [names[number] for number in found] == expected
        most = [max(most[0], len(set(expected))), max(most[1], sum(sizes[number] for number in set(found.tolist())))]
    assert loaders[0].most_domains(range(40)) == most[0]
    assert loaders[0].most_domains(range(40), sizes[: len(names)]) == most[1]
    assert loaders[0].most_domains(range(0)) == 0


def test_an_order_file_leaves_rows_out_of_their_domains():
    order = np.array([40, 3, 8, 44, 1, 9])
    rows = stream(loader_of({"code": 1, "news": 1, "poems": 2}, order=order), 12)
    assert sorted(set(rows.tolist())) == sorted(order.tolist()) and (rows >= 37).sum() == 24
    with pytest.raises(DataError, match="^rows: data.order lists no row of domain news, which is to be read; set its"):
        loader_of({"code": 1, "news": 1}, order=order[[0, 1]])
    loader_of({"code": 1, "news": 0}, order=order[[0, 1]])  # as the message says
    model = model_of("code", "poems")
    assert loader_of(order=order[[0, 1]], model=model).domain_names == ["code", "poems"]
    with pytest.raises(DataError, match="rows of domain news"):
        loader_of(order=order, model=model)


def test_a_model_gets_the_index_in_its_own_list():
    model = model_of("law", "poems", "news", "code")
    batch = next(loader_of({"code": 1, "poems": 1}, model=model).batches(3))
    rows = loader_of({"code": 1, "poems": 1}).row_numbers(3)
    assert batch.extra["domain"].tolist() == [3 if row < 7 else 1 for row in rows]
    assert batch.extra["domain"].dtype == np.int32 and SOURCES["domain"](model, Rows(), rows, None).shape == (4,)


def test_evaluation_takes_the_domains_in_turn():
    rows = Rows()
    parts = batch_rows(rows, 8)
    assert [(name, own.start, len(own)) for name, own in parts] == [
        ("code", 0, 7),
        ("news", 7, 8),
        ("poems", 37, 8),
        ("news", 15, 8),
        ("poems", 45, 3),
        ("news", 23, 8),
        ("news", 31, 6),
    ]
    assert batch_rows(rows, 8, 4) == parts[:4] and num_batches(rows, 8) == 7
    assert batch_rows(rows, 8, 1) == parts[:3]  # one of each at least
    assert batch_rows(rows, 8, 1, ["poems"]) == [parts[2]]
    last = list(sequential_batches(rows, 8, True, model=model_of("code", "poems"), domains=["code", "poems"]))[-1]
    assert last.extra["domain"].tolist() == [1] * 8 and last.ids[:, 0].tolist() == [45, 46, 47] + [rows.pad_id] * 5
    with pytest.raises(DataError, match="^rows: no rows of domain law; there are rows of code, news, poems; name one"):
        batch_rows(rows, 8, 0, ["law"])
    with pytest.raises(
        DataError, match="rows of domain news; .* poems, code, must .*name one that it has by --domain .poems, code"
    ):
        next(sequential_batches(rows, 8, True, model=model_of("poems", "code")))


def test_one_domain_is_evaluated_in_file_order():
    rows = Rows({"news": 21})
    assert [list(own) for _, own in batch_rows(rows, 8)] == [list(range(8)), list(range(8, 16)), list(range(16, 21))]
    assert batch_rows(rows, 8, 2) == batch_rows(rows, 8)[:2]


@pytest.mark.parametrize(
    ("data", "domains", "text"),
    [
        ({"mixture": {"law": 1}}, (), "data.mixture: R: no rows of domain law; there are rows of code, news; name one"),
        (
            {"samples_per_domain": {"law": 1}},
            (),
            "data.samples_per_domain: R: no rows of domain law; there are rows of code, news; name one of these",
        ),
        (
            {},
            ("law", "news"),
            "R: rows of domain code; the model, with domains law, news, must have the domain of every row;"
            " leave the others out by 'data.mixture={news: 1}', or name them in a new model by"
            " 'model.domains=[code, news]', or prepare them with `pangu data prepare",
        ),
        (
            {},
            ("law",),
            "R: rows of domain code; the model, with domains law, must have the domain of every row, and has that of"
            " none; name them in a new model by 'model.domains=[code, news]', or prepare them",
        ),
    ],
)
def test_a_domain_that_one_side_lacks_is_told(data, domains, text):
    with pytest.raises(DataError) as caught:
        require_run_domains("R", ["code", "news"], DataConfig(**data), model_of(*domains))
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_loader_reads_no_domain_that_the_records_lack():
    config = load_config("alpha/tiny", ["data.mixture={law: 1, code: 1}"])
    with pytest.raises(DataError, match="^data.mixture: rows: no rows of domain law; there are rows of code, news, p"):
        Loader.of(Rows(), config)
    Loader.of(Rows(), load_config("alpha/tiny", ["data.mixture={law: 0, code: 1}"]))


def test_advice_is_taken():
    """The overrides that the message names are valid, and they leave the other domains out."""
    names = ["news of 2020", "code", "law: the people's"]
    with pytest.raises(DataError) as caught:
        require_known("R", names, model_of("law: the people's", "news of 2020"))
    advice = str(caught.value).partition("leave the others out by ")[2].partition(", or name them")[0]
    data = load_config("alpha/tiny", shlex.split(advice)).data
    assert data.mixture == {"law: the people's": 1, "news of 2020": 1}
    require_run_domains("R", names, data, model_of("law: the people's", "news of 2020"))


def test_rows_without_a_domain_are_told_where_one_is_needed():
    found, model = [UNKNOWN_DOMAIN], model_of("code", "news")
    require_run_domains("R", found, DataConfig(), model_of())
    for data, domains in ((DataConfig(), model), (DataConfig(mixture={"code": 1}), model_of())):
        with pytest.raises(DataError, match=r"\(none named\)|without a domain") as caught:
            require_run_domains("R", found, data, domains)
        assert "--domain NAME=FILES" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.mixture={a: 1}", "data.samples_per_domain={a: 8}"], "samples_per_domain: data.mixture is given, too"),
        (["data.samples_per_domain={a: 3, b: 2}"], "5 samples in all, train.batch_size=8: must be equal; set train.b"),
        (["data.samples_per_domain={a: 9, b: -1}"], "samples_per_domain.b=-1: must not be negative"),
        (["data.mixture={a: -1}"], "mixture.a=-1.0: must not be negative"),
        (["data.mixture={a: 0, b: 0}"], "mixture: all are 0"),
        (["data.mixture={a: 1, b: 1e-9}"], "mixture.b=1e-09: must be 0 or at least 1e-06 of the weights' sum"),
        (["data.mixture={a: .nan}"], "data.mixture.a"),
    ],
)
def test_amounts_that_make_no_batch(overrides, text):
    with pytest.raises(ConfigError) as caught:
        load_config("alpha/tiny", overrides)
    assert text in str(caught.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of Chinese that both say zh, one without domains, and code in a directory."""
    place = tmp_path_factory.mktemp("domains")
    texts = documents(90)
    for number, name in enumerate(("poems", "modern")):
        write_jsonl(place / f"{name}.jsonl", [t | {"domain": "zh"} for t in texts[number * 30 :][:30]])
    (place / "src").mkdir()
    write_jsonl(place / "src/a.jsonl", [{"text": t["text"]} for t in texts[60:80]])
    write_jsonl(place / "other.jsonl", texts[80:])
    return place, [str(place / name) for name in ("poems.jsonl", "modern.jsonl", "src/a.jsonl", "other.jsonl")]


def test_an_option_names_the_domain_of_files(corpus, tokenizer_path, tmp_path, capfd, monkeypatch):
    place, names = corpus
    monkeypatch.chdir(place)
    words = ["--tokenizer", str(tokenizer_path), "--output", str(tmp_path / "out"), "--seq-length", "15"]
    domains = ["--domain", "old=po*.jsonl", "--domain", f"new={place}/modern.jsonl", "--domain=source=src"]
    assert cli.main(["data", "prepare", "--corpus", *names, *words, *domains, "--num-workers", "1"]) == 0
    capfd.readouterr()
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    own = {name: counts["documents"] for name, counts in manifest["splits"]["train"]["domains"].items()}
    held = {name: counts["documents"] for name, counts in manifest["splits"]["held_out"]["domains"].items()}
    assert {name: own[name] + held[name] for name in own} == {"old": 30, "new": 30, "source": 20} | {
        name: sum(d["domain"] == name for d in documents(90)[80:]) for name in ("code", "zh")
    }
    assert all(held.values())  # a share of 0.02 is less than a document of each
    assert [entry.get("domain") for entry in manifest["inputs"]] == ["old", "new", "source", None]
    records = RecordSet.open(tmp_path / "out")
    assert records.domain_names == ["code", "new", "old", "source", "zh"]
    assert RecordSet.require_declared(tmp_path / "out", "train", types.SimpleNamespace(seq_length=15, vocab_size=600))
    cli.main(["data", "inspect", str(tmp_path / "out"), "--rows", "0"])
    shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["old", *map(str, (own["old"],))] in [words[:2] for words in shown]
    assert [words[-1] for words in shown if words[:1] == ["old"]][0] == str(len(records.domains["old"]))


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        (["a=none*.jsonl"], "--domain a=none*.jsonl: none of the 4 files of --corpus (first: "),
        (["a=poems.jsonl", "b=*.jsonl"], "poems.jsonl has the domain a already; a file has one; mend one of them"),
        (["=poems.jsonl"], "--domain =poems.jsonl: no name before the =; a domain has a name of its own"),
        (["unknown=poems.jsonl"], "unknown before the =; a domain has a name of its own"),
        (["zh,code=poems.jsonl"], "--domain zh,code=poems.jsonl: a comma in the name zh,code: a file has one domain; "),
        (["poems.jsonl"], "--domain poems.jsonl: must be NAME=FILES, for example --domain code="),
    ],
)
def test_options_that_name_no_file_or_one_twice(corpus, tokenizer_path, tmp_path, capfd, monkeypatch, claims, text):
    place, names = corpus
    monkeypatch.chdir(place)
    words = [word for claim in claims for word in ("--domain", claim)]
    words += ["--tokenizer", str(tokenizer_path), "--output", str(tmp_path / "out")]
    assert cli.main(["data", "prepare", "--corpus", *names, *words]) == 2
    err = capfd.readouterr().err
    assert text in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_rows_of_a_domain_that_some_blocks_lack(tmp_path):
    """Blocks of random documents, against one stream of ids for each domain."""
    rng, streams, paths = np.random.default_rng(0), collections.defaultdict(list), []
    for number, names in enumerate([["b", "a"], ["b"], ["c", "a", "a"], ["b", "b"], ["a"]]):
        tokens = rng.integers(1, 9, len(names))
        ids = rng.integers(10, 99, tokens.sum()).astype(np.int32)
        for name, part in zip(names, np.split(ids, np.cumsum(tokens)[:-1])):
            streams[name] += part.tolist()
        keys = np.arange(len(names), dtype=np.uint64)
        paths.append(tmp_path / f"{number}.npz")
        paths[-1].write_bytes(Block(ids, tokens, tokens, keys, np.array(names)).to_bytes())
    table = DocumentTable.of(paths)
    rows = RowsByDomain(paths, table, np.ones(len(table.tokens), bool), 4, 0)
    packed = np.concatenate(list(rows)).tolist()
    expected = {name: [*ids, *[0] * (-len(ids) % 4)] for name, ids in sorted(streams.items())}
    assert sum(packed, []) == sum(expected.values(), [])
    starts = np.cumsum([0, *[len(ids) // 4 for ids in expected.values()]]).tolist()
    assert [own["first_row"] for own in rows.ranges.values()] == starts[:-1]
    assert [own["rows"] for own in rows.ranges.values()] == np.diff(starts).tolist()


def test_a_run_with_other_domains_does_not_take_its_blocks(corpus, tokenizer_path, tmp_path, monkeypatch):
    from pangu_ms.core.errors import OutputError
    from pangu_ms.data import prepare as module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(corpus[0])
    options = {"seq_length": 15, "num_workers": 1, "progress": False}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_write_splits", stop)
        prepare(corpus[1], tokenizer_path, tmp_path / "out", **options)
    with pytest.raises(OutputError, match="interrupted run with another corpus"):
        prepare(corpus[1], tokenizer_path, tmp_path / "out", **options, domains=[("a", "poems.jsonl")])
    prepare(corpus[1], tokenizer_path, tmp_path / "out", **options)


def test_records_of_earlier_versions_are_one_domain(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "r")
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    for counts in manifest["splits"]["train"]["domains"].values():
        del counts["first_row"], counts["rows"]
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    records = RecordSet.open(tmp_path / "r")
    assert records.domains == {UNKNOWN_DOMAIN: range(records.num_rows)}
    assert records.domain_of(np.arange(records.num_rows)).max() == 0
    manifest["splits"]["train"]["domains"].pop("code")
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    assert RecordSet.open(tmp_path / "r").domain_names == ["zh"]  # all documents were of one domain


@pytest.mark.parametrize(
    "change", [{"first_row": 1}, {"rows": 5}, {"rows": -1}, {"first_row": "0"}, {"rows": 0}, {"rows": True}]
)
def test_ranges_that_do_not_cover_the_rows(prepared, tmp_path, change):
    (tmp_path / "r").mkdir()
    manifest = json.loads((prepared[0] / "manifest.json").read_text())
    manifest["splits"]["train"]["domains"]["code"] |= change
    (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not a manifest"):
        RecordSet.open(tmp_path / "r")


def test_the_default_corpus_has_two_domains():
    corpus = Corpus(standard_library_files()[::6], domains=standard_library_domains())
    sizes = collections.Counter()
    for path, domain in zip(corpus.files, corpus.domains):
        sizes[domain] += path.stat().st_size
    assert set(sizes) == {"modules", "packages"} and min(sizes.values()) > 200_000


def test_names_that_yaml_reads_as_something_else_are_advised_in_quotes():
    with pytest.raises(DataError, match=r"""'model.domains=\[en, "no", "2023"\]'"""):
        require_known("R", ["en", "no", "2023"], model_of("zh"))
