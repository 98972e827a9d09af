"""The ablation of PanGu-pi: variants with and without series activation and augmented shortcuts, trained in the same
way. No mindspore import.

Source: specification D5.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.config.load import config_to_dict, load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.default_corpus import standard_library_files
from pangu_ms.data.records import RecordSet
from pangu_ms.models.pi.config import PiConfig
from pangu_ms.research.study.compare import confidence, mean_and_deviation, paired_difference, require_pi, require_seeds
from pangu_ms.research.study.runs import Stage, claim, records_stage, run_stages, tokenizer_stage

STUDY = "pi-ablation"
Fields = dict[str, Any]
"""Values of fields of the model section."""
_NO_SERIES: Fields = {"siaf_terms": 1}
_NO_SHORTCUT: Fields = {"aug_shortcut_branches": 0}
REMOVED: dict[str, Fields] = {
    "vanilla": _NO_SERIES | _NO_SHORTCUT,
    "widenet": _NO_SERIES | _NO_SHORTCUT,
    "siaf": _NO_SHORTCUT,
    "as": _NO_SERIES,
    "both": {},
}
"""By variant: the fields that remove parts from the base model."""
REFERENCES = ("vanilla", "widenet")
"""The variants that all others are compared with."""
FFN_MULTIPLE = 8
"""Feed-forward widths are multiples of this."""
ALL_BATCHES = 10**9
"""More batches than any held-out split has, so that `pangu train` scores the whole split."""
TOKENS_PER_ROUND = 16
"""Tokens that each checkpoint decodes per round of the latency measurement, if its context has room for them."""


def variant_fields(base: PiConfig, equal: str = "parameters") -> dict[str, Fields]:
    """The fields of the model section that make each variant; all other fields are the base's.

    * `both` is the base.
    * `vanilla` is the base without series activation (siaf_terms=1) and without shortcuts. It is as wide as the base
      and so has the fewest parameters, as in the paper.
    * `siaf` and `as` each have one of the two parts.
    * `widenet` is vanilla with a feed-forward network so wide that it has as many parameters as `both`. Comparing
      `both` with it shows what the parts contribute beyond the parameters that they cost. The paper does not publish
      the width of its WideNet. That model is slower than `both` (8.06 against 7.86 ms, spec D5), and so it is wider
      than ours: we compare at equal parameters, not at equal time.

    Widths are multiples of 8; the width that gives the nearest number of parameters is taken.

    Args:
        base: the full model.
        equal: "parameters" also widens `siaf` and `as` to the number of parameters of `both`, so that they can be
            compared with `widenet` and `both`; "width" leaves them as wide as the base, as in the paper, so that they
            can be compared with `vanilla`.

    Raises:
        ConfigError: the base lacks series activation or shortcuts.
    """
    if base.siaf_terms < 2 or base.aug_shortcut_branches < 1:
        found = f"model.siaf_terms={base.siaf_terms} model.aug_shortcut_branches={base.aug_shortcut_branches}"
        raise ConfigError(
            f"{found}: the base of the variants has both parts; use siaf_terms of at least 2 and at least 1 branch"
        )
    widened = ("widenet", "siaf", "as") if equal == "parameters" else ("widenet",)
    parameters, variants = base.num_parameters(), {}
    for name, removed in REMOVED.items():
        model = dataclasses.replace(base, **removed)
        width = _width_for(model, parameters) if name in widened else base.ffn_hidden_size
        variants[name] = {
            "siaf_terms": model.siaf_terms,
            "aug_shortcut_branches": model.aug_shortcut_branches,
            "ffn_hidden_size": width,
        }
    return variants


def _width_for(model: PiConfig, parameters: int) -> int:
    """The multiple of FFN_MULTIPLE that, as ffn_hidden_size, gives the model a number of parameters nearest to
    `parameters`. The number of parameters is linear in ffn_hidden_size, so two values determine it."""
    least, next_least = (dataclasses.replace(model, ffn_hidden_size=n * FFN_MULTIPLE).num_parameters() for n in (1, 2))
    return FFN_MULTIPLE * max(1, 1 + round((parameters - least) / (next_least - least)))


def run_ablation(
    output: Path | str,
    config: str = "pi/tiny",
    overrides: list[str] | tuple[str, ...] = (),
    data: str | None = None,
    corpus: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    variants: Sequence[str] = tuple(REMOVED),
    equal: str = "parameters",
    progress: bool = True,
) -> dict[str, Any]:
    """Train every variant with every seed, score all held-out records and time decoding; write the results to
    OUTPUT/results.json and return them.

    All variants of a seed see the same batches in the same order, and the parameters that they have in common start
    from the same values. Stages that `output` already holds are kept, so that an interrupted study resumes, and further
    seeds or variants can be added.

    Args:
        output: directory of the study.
        config: base configuration of family pi; with `overrides`, the variant `both`.
        data: prepared records with a held-out split. By default records are made from `corpus`; without a corpus, the
            records of the setting data.records are used; if that is empty too, records of the quickstart's corpus are
            made in `output`.
        corpus: text files to make a tokenizer and records from.
        seeds: seeds of initial weights and order of the data; each variant is trained once with each.
        variants: names of REMOVED; vanilla must be among them.
        equal: see `variant_fields`.
        progress: show a bar.

    Returns:
        By variant: parameters; held-out losses (nats per token) with mean and deviation; paired differences to vanilla
        and widenet; training tokens/s; decoding ms per token and its ratio to vanilla; effective dimension d(0.8).
        `confidence` is that of two standard errors.

    Raises:
        ConfigError: a base, variant, seed or override cannot be used.
        DataError: the records do not fit, or have no held-out split.
        OutputError: `output` holds something else, or another study.
        UserError: a run failed.
        StudyStopped: a signal ended the study.
    """
    require_seeds(seeds, overrides)
    output, base = Path(output).absolute(), load_config(config, overrides)
    _require_variants(variants)
    model = require_pi(base.model, "the parts under study are PanGu-pi's")
    fields = {name: changed for name, changed in variant_fields(model, equal).items() if name in variants}
    source = data or ("" if corpus else base.data.records)
    _require_data(base, data, corpus, source)
    claim(output, STUDY)
    records = str(Path(source).absolute()) if source else prepare_records(base, corpus, output / "data", progress)
    RecordSet.open(records, "held_out").check(model)
    command = ["--config", str(Path(config).absolute()) if Path(config).is_file() else config, *overrides]
    by_variant, timed, collapsed = _Runs(output, command, fields, seeds, records).run(model, progress)
    results: dict[str, Any] = {"study": STUDY, "config": config, "overrides": list(overrides), "equal": equal}
    results |= {"steps": base.train.steps, "records": records, "seeds": list(seeds)}
    results["confidence"] = confidence(len(seeds)) if len(seeds) > 1 else None
    results["variants"] = {}
    for name, timing in zip(fields, timed["checkpoints"]):
        variant = _size(model, fields[name]) | summarize(name, by_variant, seeds, timing)
        results["variants"][name] = variant | {"effective_dimension": summarize_collapse(name, collapsed, seeds)}
    files.write_json(output / "results.json", results)
    return results


def _size(base: PiConfig, fields: Fields) -> dict[str, Any]:
    return {"parameters": dataclasses.replace(base, **fields).num_parameters(), "fields": fields}


def _require_variants(variants: Sequence[str]) -> None:
    unknown = [name for name in variants if name not in REMOVED]
    if not unknown and "vanilla" in variants:
        return
    found = f"unknown variant {unknown[0]!r}" if unknown else "vanilla is missing, which the others are compared with"
    raise ConfigError(
        f"--variants {','.join(variants)}: {found}; use vanilla and some of {', '.join(list(REMOVED)[1:])}"
    )


def _require_data(base: RunConfig, data: str | None, corpus: Sequence[str], source: str) -> None:
    if data and corpus:
        raise ConfigError("--data and --corpus: only one source of text can be used; leave one out")
    if not source and not base.data.held_out:
        raise ConfigError("data.held_out=0: the variants are compared on held-out records; use e.g. 0.05")


def prepare_records(base: RunConfig, corpus: Sequence[str], directory: Path, progress: bool) -> str:
    """Train a tokenizer and prepare records in `directory`; returns the path of the records.

    Args:
        corpus: text files; empty for those of the quickstart.
    """
    paths = [str(Path(path).absolute()) for path in corpus] or standard_library_files()
    tokenizer, records = directory / "tokenizer/tokenizer", directory / "records/records"
    run_stages([tokenizer_stage(tokenizer, base, paths), records_stage(records, base, paths, tokenizer)], progress)
    return str(records)


@dataclass(frozen=True)
class _Runs:
    """The stages of an ablation."""

    output: Path
    command: Sequence[str]
    """The configuration and overrides of `pangu train` that all variants share: --config CONFIG OVERRIDES."""
    fields: dict[str, Fields]
    """By variant: the fields that make it."""
    seeds: Sequence[int]
    records: str

    def run(
        self, model: PiConfig, progress: bool
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any], list[dict[str, Any]]]:
        """Run the stages that are not done yet.

        Returns:
            The results of `pangu train` by variant, one per seed; of `pangu study latency`; and of `pangu analyze
            collapse`, one per seed.
        """
        training = {(name, seed): self._train(name, seed) for seed in self.seeds for name in self.fields}
        latency = self._latency(self.seeds[0], model.seq_length)
        collapse = [self._collapse(seed) for seed in self.seeds]
        done = run_stages([*training.values(), latency, *collapse], progress)
        by_run = dict(zip(training, done))
        by_variant = {name: [by_run[name, seed] for seed in self.seeds] for name in self.fields}
        return by_variant, done[len(training)], done[len(training) + 1 :]

    def _directory(self, variant: str, seed: int) -> Path:
        return self.output / variant / f"seed-{seed}"

    def _checkpoints(self, seed: int) -> list[str]:
        return [str(self._directory(name, seed) / "run") for name in self.fields]

    def _compared(self, kind: str, seed: int) -> Path:
        """Directory of a stage that compares all variants of one seed."""
        return self.output / kind / f"seed-{seed}-{'-'.join(self.fields)}"

    def _train(self, variant: str, seed: int) -> Stage:
        """The training of one variant with one seed. Its overrides come after the user's, so that they take
        precedence."""
        changed = [f"model.{name}={value}" for name, value in self.fields[variant].items()]
        changed += [f"train.seed={seed}", f"data.seed={seed}", f"train.eval_batches={ALL_BATCHES}"]
        directory = self._directory(variant, seed)
        paths = ("--data", self.records, "--output", str(directory / "run"), "--resume")
        identity = config_to_dict(load_config(self.command[1], [*self.command[2:], *changed]))
        return Stage(directory, ("train", *self.command, *changed, *paths), identity)

    def _latency(self, seed: int, seq_length: int) -> Stage:
        """Decoding with the checkpoints of one seed."""
        tokens = min(TOKENS_PER_ROUND, seq_length - 1)
        command = ("study", "latency", *self._checkpoints(seed), "--tokens", str(tokens))
        return Stage(self._compared("latency", seed), command)

    def _collapse(self, seed: int) -> Stage:
        """Diversity of the features of each layer, of all variants of one seed, over all held-out records."""
        options = ("--labels", ",".join(self.fields), "--data", self.records, "--max-batches", "0")
        command = ("analyze", "collapse", *self._checkpoints(seed), *options)
        return Stage(self._compared("collapse", seed), command)


def summarize_collapse(name: str, collapsed: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """d(0.8) of one variant, averaged over its layers (spec D6, Fig. 4).

    Args:
        name: the variant.
        collapsed: results of `pangu analyze collapse`, one for each seed.
        seeds: the seeds.
    """
    found = {}
    for seed, result in zip(seeds, collapsed):
        (layers,) = (checkpoint["layers"] for checkpoint in result["checkpoints"] if checkpoint["label"] == name)
        behind_embedding = layers[1:]
        found[str(seed)] = statistics.fmean(layer["effective_dimension"] for layer in behind_embedding)
    mean, deviation = mean_and_deviation(list(found.values()))
    return {"seeds": found, "mean": mean, "standard_deviation": deviation}


def summarize(
    name: str, runs: Mapping[str, Sequence[dict[str, Any]]], seeds: Sequence[int], timing: dict[str, Any]
) -> dict[str, Any]:
    """The results of one variant.

    Args:
        name: the variant.
        runs: results of `pangu train` by variant, one for each seed.
        seeds: the seeds.
        timing: the variant's row of `pangu study latency`.
    """
    losses = _losses(runs[name])
    mean, deviation = mean_and_deviation(losses)
    # A session that found its run complete reports 0 tokens per second.
    speeds = [run["tokens_per_second"] for run in runs[name] if run["tokens_per_second"]]
    others = [other for other in REFERENCES if other in runs and other != name]
    return {
        "losses": dict(zip(map(str, seeds), losses)),
        "loss": {"mean": mean, "standard_deviation": deviation},
        "difference": {other: paired_difference(losses, _losses(runs[other])) for other in others},
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "ms_per_token": timing["ms_per_token"],
        "latency_ratio": {"median": timing["ratio"], "quartiles": timing["ratio_quartiles"]},
    }


def _losses(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [run["held_out"]["loss"] for run in runs]
