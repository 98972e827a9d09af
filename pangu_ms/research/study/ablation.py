"""What series activation and augmented shortcut bring: PanGu-pi's variants trained alike. Source: specification D5. No
mindspore import."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_ms.config.load import config_to_dict, load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.default_corpus import standard_library_files
from pangu_ms.data.records import RecordSet
from pangu_ms.models.pi.config import PiConfig
from pangu_ms.research.study.compare import confidence, mean_and_deviation, paired_difference, require_seeds
from pangu_ms.research.study.runs import Stage, claim, run_stages
from pangu_ms.research.study.text import records_stage, tokenizer_stage

STUDY = "pi-ablation"
PLAIN, NO_SHORTCUT = {"siaf_terms": 1}, {"aug_shortcut_branches": 0}
REMOVED = {"vanilla": PLAIN | NO_SHORTCUT, "widenet": PLAIN | NO_SHORTCUT, "siaf": NO_SHORTCUT, "as": PLAIN, "both": {}}
REFERENCES = ("vanilla", "widenet")
FFN_MULTIPLE = 8
ALL_BATCHES = 10**9
TOKENS_PER_ROUND = 16


def variant_fields(base: PiConfig, equal: str = "parameters") -> dict[str, dict[str, int]]:
    """The fields of the model section that make each variant; all other fields are the base's.

    The base is `both`. vanilla is the base without series activation (siaf_terms=1) and without shortcuts, as wide as
    the base, so it has the fewest parameters, as in the paper; siaf and as lack one of the two. widenet is vanilla with
    a feed-forward network so wide that it has as many parameters as both: what the modules bring beyond the parameters
    that they cost is both against widenet. The paper's WideNet is of an unknown width, slower than both (8.06 against
    7.86 ms, spec D5), so wider than ours; ours is the stricter comparison of parameters, not of time. Widths are
    multiples of 8; the parameter count is the nearest that these allow.

    Args:
        base: the full model.
        equal: "parameters" widens siaf and as to the parameters of both as well, so that they can be compared with
            widenet and both; "width" leaves them as wide as the base, as in the paper, so that they can be compared
            with vanilla.

    Raises:
        ConfigError: the base lacks series activation or shortcuts, or is of another family.
    """
    if base.family != "pi":
        raise ConfigError(
            f"model.family={base.family}: the parts under study are PanGu-pi's; use a config of family pi"
        )
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
    """The ffn_hidden_size, a multiple of FFN_MULTIPLE, with which the model comes nearest to so many parameters (the
    count is linear in it)."""
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
    """Train every variant with every seed, score all held-out records, time decoding; writes and returns
    OUTPUT/results.json.

    All variants of a seed see the same batches in the same order and start from the same values where they have the
    same parameters. What is done in `output` already is kept, so that an interrupted study goes on and further seeds or
    variants can be added.

    Args:
        output: directory of the study.
        config: base configuration of family pi; with `overrides`, the variant `both`.
        data: prepared records with a held-out split; by default `corpus`, else data.records, else the quickstart's
            corpus, prepared in `output`.
        corpus: text files to make a tokenizer and records of.
        seeds: of initial weights and order of the data, one run of each variant for each.
        variants: some of REMOVED; vanilla must be among them.
        equal: see `variant_fields`.
        progress: show a bar.

    Returns:
        Parameters, held-out losses (nats per token), their mean and deviation, paired differences to vanilla and
        widenet, training tokens/s, decoding ms per token and its ratio to vanilla, effective dimension d(0.8), by
        variant; confidence is that of two standard errors.

    Raises:
        ConfigError: a base, variant, seed or override that cannot be used.
        DataError: records that do not fit, or have no held-out split.
        OutputError: `output` holds something else, or another study.
        UserError: a run failed.
        StudyStopped: a signal ended it.
    """
    require_seeds(seeds, overrides)
    output, base = Path(output).absolute(), load_config(config, overrides)
    _require_variants(variants)
    fields = {name: changed for name, changed in variant_fields(base.model, equal).items() if name in variants}
    source = data or ("" if corpus else base.data.records)
    _require_data(base, data, corpus, source)
    claim(output, STUDY)
    records = str(Path(source).absolute()) if source else prepare_records(base, corpus, output / "data", progress)
    RecordSet.open(records, "held_out").check(base.model)
    words = ["--config", str(Path(config).absolute()) if Path(config).is_file() else config, *overrides]
    runs = {
        (name, seed): _train_stage(output, words, name, seed, fields[name], records)
        for seed in seeds
        for name in fields
    }
    latency = _latency_stage(output, list(fields), seeds[0], base.model.seq_length)
    collapse = [_collapse_stage(output, list(fields), seed, records) for seed in seeds]
    done = run_stages([*runs.values(), latency, *collapse], progress)
    by_run, timed, collapsed = dict(zip(runs, done)), done[len(runs)], done[len(runs) + 1 :]
    results = {
        "study": STUDY,
        "config": config,
        "overrides": list(overrides),
        "equal": equal,
        "steps": base.train.steps,
        "records": records,
    }
    results |= {"seeds": list(seeds), "confidence": confidence(len(seeds)) if len(seeds) > 1 else None}
    by_variant = {name: [by_run[name, seed] for seed in seeds] for name in fields}
    results["variants"] = {
        name: (
            _size(base.model, changed)
            | summarize(name, by_variant, seeds, timing)
            | {"effective_dimension": summarize_collapse(name, collapsed, seeds)}
        )
        for (name, changed), timing in zip(fields.items(), timed["checkpoints"])
    }
    files.write_json(output / "results.json", results)
    return results


def _size(base: PiConfig, fields: dict[str, int]) -> dict[str, Any]:
    return {"parameters": dataclasses.replace(base, **fields).num_parameters(), "fields": fields}


def _require_variants(variants: Sequence[str]) -> None:
    unknown = [name for name in variants if name not in REMOVED]
    if unknown or "vanilla" not in variants:
        found = (
            f"unknown variant {unknown[0]!r}" if unknown else "vanilla is missing, which the others are compared with"
        )
        raise ConfigError(
            f"--variants {','.join(variants)}: {found}; use vanilla and some of {', '.join(list(REMOVED)[1:])}"
        )


def _require_data(base: RunConfig, data: str | None, corpus: Sequence[str], source: str) -> None:
    if data and corpus:
        raise ConfigError("--data and --corpus: only one source of text can be used; leave one out")
    if not source and not base.data.held_out:
        raise ConfigError("data.held_out=0: the variants are compared on held-out records; use e.g. 0.05")


def prepare_records(base: RunConfig, corpus: Sequence[str], directory: Path, progress: bool) -> str:
    """Tokenizer and records for the configuration, made in `directory` of the corpus or else of the quickstart's;
    returns the records' path."""
    paths = [str(Path(path).absolute()) for path in corpus] or standard_library_files()
    tokenizer = tokenizer_stage(directory / "tokenizer", base, paths)
    records = records_stage(directory / "records", base, paths, tokenizer.product)
    run_stages([tokenizer, records], progress)
    return str(records.product)


def _run_directory(output: Path, variant: str, seed: int) -> Path:
    return output / variant / f"seed-{seed}"


def _train_stage(
    output: Path, words: Sequence[str], variant: str, seed: int, fields: dict[str, int], records: str
) -> Stage:
    """Training of one variant with one seed; its own overrides come last, so that they win."""
    changed = [
        *(f"model.{name}={value}" for name, value in fields.items()),
        f"train.seed={seed}",
        f"data.seed={seed}",
        f"train.eval_batches={ALL_BATCHES}",
    ]
    directory = _run_directory(output, variant, seed)
    places = ("--data", records, "--output", str(directory / "run"), "--resume")
    identity = config_to_dict(load_config(words[1], [*words[2:], *changed]))
    return Stage(directory, ("train", *words, *changed, *places), identity)


def _latency_stage(output: Path, variants: Sequence[str], seed: int, seq_length: int) -> Stage:
    """Decoding with the checkpoints of one seed."""
    checkpoints = [str(_run_directory(output, name, seed) / "run") for name in variants]
    tokens = min(TOKENS_PER_ROUND, seq_length - 1)
    return Stage(
        output / "latency" / f"seed-{seed}-{'-'.join(variants)}",
        ("study", "latency", *checkpoints, "--tokens", str(tokens)),
    )


def _collapse_stage(output: Path, variants: Sequence[str], seed: int, records: str) -> Stage:
    """Diversity of the features of each layer, of all variants of one seed, over all held-out records."""
    checkpoints = [str(_run_directory(output, name, seed) / "run") for name in variants]
    words = (
        "analyze",
        "collapse",
        *checkpoints,
        "--labels",
        ",".join(variants),
        "--data",
        records,
        "--max-batches",
        "0",
    )
    return Stage(output / "collapse" / f"seed-{seed}-{'-'.join(variants)}", words)


def summarize_collapse(name: str, collapsed: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """d(0.8) of one variant, averaged over its layers (spec D6, Fig. 4), from the results of `pangu analyze collapse`,
    one per seed."""
    found = {}
    for seed, result in zip(seeds, collapsed):
        (layers,) = (checkpoint["layers"] for checkpoint in result["checkpoints"] if checkpoint["label"] == name)
        found[str(seed)] = statistics.fmean(
            layer["effective_dimension"] for layer in layers[1:]
        )  # the first is the embedding
    mean, deviation = mean_and_deviation(list(found.values()))
    return {"seeds": found, "mean": mean, "standard_deviation": deviation}


def summarize(
    name: str, runs: dict[str, Sequence[dict]], seeds: Sequence[int], timing: dict[str, Any]
) -> dict[str, Any]:
    """One variant's results from the results of all runs, by variant, one per seed."""
    losses = _losses(runs[name])
    mean, deviation = mean_and_deviation(losses)
    speeds = [
        run["tokens_per_second"] for run in runs[name] if run["tokens_per_second"]
    ]  # 0 if the last session found the run complete
    return {
        "losses": dict(zip(map(str, seeds), losses)),
        "loss": {"mean": mean, "standard_deviation": deviation},
        "difference": {
            other: paired_difference(losses, _losses(runs[other]))
            for other in REFERENCES
            if other in runs and other != name
        },
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "ms_per_token": timing["ms_per_token"],
        "latency_ratio": {"median": timing["ratio"], "quartiles": timing["ratio_quartiles"]},
    }


def _losses(runs: Sequence[dict]) -> list[float]:
    return [run["held_out"]["loss"] for run in runs]
