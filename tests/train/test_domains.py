"""Training with domains: what a model reads, and what is told of each domain; see test_extra_inputs.py, too."""

import shlex
import types

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.records import RecordSet
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.train.resume import require_same_domains
from tests.train.toned import make_alpha_toned

pytestmark = pytest.mark.usefixtures("compiled_models")


@pytest.fixture
def tuned(monkeypatch, tiny_overrides):
    """Makes alpha a family with domains; returns its configuration with overrides, by the domains."""
    config_with = make_alpha_toned(monkeypatch, tiny_overrides)

    def configured(domains, *more):
        monkeypatch.setattr(AlphaConfig, "domains", domains)
        return config_with(*more)

    return configured


def test_a_domain_that_the_model_lacks_ends_before_training(tuned, two_domains, records, tmp_path, capsys):
    from pangu_ms.train.checks import require_readable
    from pangu_ms.train.run import Run

    config = tuned(("b", "c"))
    for call in (lambda: Run(config, two_domains, tmp_path / "run"), lambda: require_readable(config, two_domains)):
        with pytest.raises(
            DataError, match=r"rows of domain a; the model, with domains b, c, .*leave the others out by"
        ):
            call()
    require_readable(tuned(("b", "c"), "data.mixture={b: 1}"), two_domains)  # as the message says
    with pytest.raises(DataError, match="rows of domain code; the model, with domains b, c, .*--domain NAME=FILES"):
        require_readable(config, records)
    assert not (tmp_path / "run").exists()


def test_held_out_rows_of_a_domain_that_the_model_lacks_are_left_out(tuned, two_domains):
    from pangu_ms.train.distributed_model import ReplicatedModel

    held_out, ranks = RecordSet.open(two_domains, "held_out"), types.SimpleNamespace(leads=True, world=1)
    evaluator = types.SimpleNamespace(score=lambda batches, domains: (list(batches), domains))
    own = types.SimpleNamespace(config=tuned(("c", "b"), "data.mixture={b: 1}"), ranks=ranks, evaluator=evaluator)
    batches, domains = ReplicatedModel.evaluate(own, held_out)
    assert domains == ["b"] and [batch.extra["domain"].tolist() for batch in batches] == [[1] * 4]
    own.config = tuned(("c", "d"))
    assert ReplicatedModel.evaluate(own, held_out) is None


def test_the_command_tells_it_before_mindspore_is_imported(two_domains, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RecordSet, "open", None)  # which imports it
    capsys.readouterr()
    words = ["--data", str(two_domains), "--output", str(tmp_path / "run"), "data.mixture={c: 1}"]
    fitting = ["model.vocab_size=384", "model.seq_length=32"]
    assert main(["train", "--config", "alpha/tiny", *words, *fitting]) == 2
    assert "data.mixture: " in (err := capsys.readouterr().err) and "no rows of domain c" in err


def test_the_losses_of_a_mixed_run_are_refused(tuned, two_domains):
    from pangu_ms.eval.batch_losses import _open

    config = tuned((), "data.mixture={a: 1}")
    with pytest.raises(DataError, match="^run: trained with data.mixture; the batches of an epoch are scored"):
        _open(types.SimpleNamespace(path="run"), two_domains, 4, config)


def test_a_mixture_is_read_in_training(two_domains, tiny_overrides):
    from pangu_ms.data.loader import Loader

    config, records = load_config("alpha/tiny", [*tiny_overrides, "data.mixture={b: 1}"]), RecordSet.open(two_domains)
    rows = np.concatenate([Loader.of(records, config).row_numbers(step) for step in range(9)])
    assert (records.domain_of(rows) == 1).all()


def test_samples_per_domain_go_on_with_another_number_of_replicas(two_domains):
    """The message's overrides are taken, and each step has the rows that it had."""
    from pangu_ms.data.loader import Loader
    from pangu_ms.train.resume import require_same_run

    def configured(*words):
        return load_config("alpha/tiny", ["model.vocab_size=384", "model.seq_length=32", "train.steps=9", *words])

    samples = ["data.samples_per_domain={a: 3, b: 1}", "train.batch_size=4"]
    stored = configured(*samples, "parallel.data_parallel=2")
    with pytest.raises(ConfigError, match="must stay 8") as caught:
        require_same_run(stored, configured(*samples), "run")
    wanted = configured(*samples, *shlex.split(str(caught.value).rpartition("; add ")[2]))
    assert wanted.data.samples_per_domain == {"a": 6, "b": 2}
    require_same_run(stored, wanted, "run")
    records = RecordSet.open(two_domains)
    ranks = [Loader.of(records, stored, rank=rank, world=2) for rank in range(2)]
    for step in range(5):
        before = np.concatenate([loader.row_numbers(step) for loader in ranks])
        assert sorted(before.tolist()) == sorted(Loader.of(records, wanted).row_numbers(step).tolist())
    other = ["data.samples_per_domain={a: 4, b: 4}", "train.batch_size=8"]
    with pytest.raises(ConfigError, match="data.samples_per_domain="):
        require_same_run(stored, configured(*other), "run")
    three = configured(*samples, "parallel.data_parallel=4")
    with pytest.raises(ConfigError, match="data.samples_per_domain has no whole numbers in batches of 2"):
        require_same_run(stored, three, "run")


def test_a_rehearsal_of_the_launch_keeps_what_it_can():
    from pangu_ms.train.smoke import smoke_overrides

    for words in (["data.samples_per_domain={a: 5, b: 3}"], ["data.mixture={a: 5, b: 3}"]):
        config = load_config("alpha/tiny", words)
        own = load_config("alpha/tiny", [*words, *smoke_overrides(config, own_records=True)])
        assert own.data == config.data and own.train.batch_size == (8 if config.data.samples_per_domain else 2)
        default = load_config("alpha/tiny", [*words, *smoke_overrides(config)])
        assert not default.data.mixture and not default.data.samples_per_domain and default.train.batch_size == 2


@pytest.mark.parametrize(
    ("domains", "changes", "message"),
    [
        ("[a, b]", "", None),
        ("[a, new]", "", None),
        ("[b, a]", "", r"model.domains=\[b, a\]: domain b would get the experts of a; .*order is \[a, b\]; keep it"),
        ("[new, a]", "", "domain a would get the experts of b"),
        ("[a, b]", "model.group_of_domain=[1, 0]", "domain a would have other experts or another slot"),
        ("[a, b]", "model.slot_of_domain=[1, 0]", "domain a would have other experts or another slot"),
    ],
)
def test_initial_weights_stay_with_their_domains(domains, changes, message):
    """Names in another order exchanged the experts of two domains without a word."""
    slots = "model.slot_of_domain=[0, 1]"
    old = load_config("sigma/tiny", ["model.domains=[a, b]", slots]).model
    new = load_config("sigma/tiny", [f"model.domains={domains}", slots, *filter(None, [changes])]).model
    if message is None:
        return require_same_domains("W", old, new)
    with pytest.raises(ConfigError, match=f"^W: .*{message}"):
        require_same_domains("W", old, new)
