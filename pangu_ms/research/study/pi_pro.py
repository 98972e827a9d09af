"""The four steps of PanGu-pi Pro on the user's own corpus, each measured by held-out bits per byte. No mindspore
import.

Bits per byte can be compared between vocabularies, because the held-out documents are the same: a hash of a document's
text decides whether it is held out. All runs take the same number of steps and tokens. So a run with the compact
vocabulary, which needs more tokens for the same text, reads less text. The second round of training adds further steps.

Source: specification E2.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.config.iso import Search, differences, find_shapes, reshape
from pangu_ms.config.load import config_to_dict, load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.corpus import Corpus
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.pi.config import PiConfig
from pangu_ms.research.inherit.fit import require_fit
from pangu_ms.research.study.compare import mean_and_deviation, paired_difference, require_pi, require_seeds
from pangu_ms.research.study.runs import Stage, claim, records_stage, run_stages, tokenizer_stage

STUDY = "pi-pro"
STEPS = ("baseline", "compact", "tweaked", "inherited", "second_round", "second_round_control")
PREVIOUS = {
    "compact": "baseline",
    "tweaked": "compact",
    "inherited": "tweaked",
    "second_round": "second_round_control",
    "second_round_control": "inherited",
}
MEANING = {
    "baseline": "the base, full vocabulary, random weights",
    "compact": "compact vocabulary, the body widened to the same number of parameters (E2.1)",
    "tweaked": "deeper and narrower at the same number of parameters (E2.2)",
    "inherited": "the same shape with weights of the teacher (E2.3)",
    "second_round": "that, trained on with the batches that it finds hard (E2.4)",
    "second_round_control": "that, trained on with as many batches drawn evenly",
}
KEPT_ENDS = 3
"""How many of the teacher's first and of its last layers a student keeps (spec E2.3), if it has enough layers to keep
others between them."""
EVENLY = 1e6
"""A temperature so high that all batches are practically equally likely."""


@dataclass(frozen=True)
class Plan:
    """The models of the chain, and the settings with which they are made."""

    base: RunConfig
    """Configuration of the baseline's run; all runs share its sections, except for `model`."""
    baseline: PiConfig
    """The baseline's model, `base.model`."""
    teacher: PiConfig
    compact: PiConfig
    tweaked: PiConfig
    teacher_steps: int
    keep: float
    """Share of the batches that the second round reads."""
    second_lr: float
    """Peak learning rate of the second round, as a share of the first round's."""
    criterion: str
    """The criterion by which neurons, heads and channels of the teacher are chosen."""


def make_plan(
    config: str = "pi/tiny",
    overrides: Sequence[str] = (),
    compact_size: int = 0,
    depth: int = 0,
    teacher_fields: dict[str, int] | None = None,
    teacher_steps: int = 0,
    keep: float = 0.5,
    second_lr: float = 0.5,
    criterion: str = "taylor",
) -> Plan:
    """Derive the models of the chain from the baseline's configuration. All students have as many parameters as the
    baseline, to within 1 %.

    Args:
        config, overrides: the baseline, of family pi; model.vocab_size is the full vocabulary's.
        compact_size: pieces of the compact vocabulary; 0 is half of the full one.
        depth: layers of the tweaked shape; 0 is twice the baseline's.
        teacher_fields: the teacher's model fields. By default it has one and a half times the depth of the tweaked
            shape, and the larger of the widths of the compact and the tweaked shape.
        teacher_steps: training steps of the teacher; 0 trains it as long as the other models.
        keep, second_lr, criterion: see Plan.

    Raises:
        ConfigError: the configuration is not of family pi, or a number is out of range.
    """
    base = load_config(config, list(overrides))
    baseline = require_pi(base.model, "the recipe is PanGu-pi's")
    if not base.data.held_out:
        raise ConfigError("data.held_out=0: the steps are compared on held-out documents; use e.g. 0.05")
    compact_size, depth = compact_size or baseline.vocab_size // 2, depth or 2 * baseline.num_layers
    teacher_steps = teacher_steps or base.train.steps
    _require_limits(baseline, {"--keep": keep, "--second-lr": second_lr}, compact_size, teacher_steps)
    small_vocabulary = dataclasses.replace(baseline, vocab_size=compact_size)
    search = Search(target=baseline.num_parameters(), head_dim=baseline.head_dim)
    expansion = baseline.ffn_hidden_size / baseline.hidden_size
    compact = _equal_shape(small_vocabulary, search, baseline.num_layers, expansion)
    tweaked = _equal_shape(small_vocabulary, search, depth, expansion)
    fields = {"num_layers": depth * 3 // 2}
    for name in ("hidden_size", "num_heads", "num_kv_heads", "ffn_hidden_size"):
        fields[name] = max(getattr(compact, name), getattr(tweaked, name))
    teacher = _pi(reshape(baseline, **fields | (teacher_fields or {})))
    require_fit(teacher, tweaked)
    return Plan(base, baseline, teacher, compact, tweaked, teacher_steps, keep, second_lr, criterion)


def _require_limits(baseline: PiConfig, shares: dict[str, float], compact_size: int, teacher_steps: int) -> None:
    limits: dict[str, tuple[float, float]] = {
        "--compact-size": (compact_size, baseline.vocab_size - 1),
        "--keep": (shares["--keep"], 1.0),
        "--second-lr": (shares["--second-lr"], 1e9),
        "--teacher-steps": (teacher_steps, 1e9),
    }
    for name, (value, limit) in limits.items():
        if not 0 < value <= limit:
            raise ConfigError(f"{name} {value}: must be above 0 and at most {limit:g}")


def _pi(model: ModelConfig) -> PiConfig:
    """Narrow the type of a model that was derived from a PanGu-pi, and so is one."""
    assert isinstance(model, PiConfig)
    return model


def _equal_shape(model: PiConfig, search: Search, depth: int, expansion: float) -> PiConfig:
    shape = find_shapes(model, search, [depth], [expansion])[0]
    if not shape.within_tolerance:
        nearest = (
            f"the nearest shape of {depth} layers has {shape.num_parameters:,} parameters, the baseline"
            f" {search.target:,}"
        )
        raise ConfigError(
            f"--depth {depth}: {nearest}; they must be equal to within {search.tolerance:.0%}; choose another depth or"
            " a larger baseline"
        )
    return _pi(shape.model)


def run_pi_pro(
    plan: Plan,
    config: str,
    corpus: Sequence[str],
    output: Path | str,
    seeds: Sequence[int] = (1, 2, 3),
    progress: bool = True,
) -> dict[str, Any]:
    """Run the chain for every seed, with one teacher for all seeds; write the results to OUTPUT/results.json and return
    them. The same call resumes an interrupted study.

    Args:
        plan: see `make_plan`.
        config: the name or path of the configuration that the plan was made from; the commands use it.
        corpus: text files.
        output: directory of the study.
        seeds: seeds of initial weights, order of the data, and draw of the second round.
        progress: show a bar.

    Returns:
        For each step: parameters, shape, bits per byte of each seed with mean and deviation, and the paired difference
            to the step named in PREVIOUS.

    Raises:
        ConfigError, DataError, OutputError, UserError, StudyStopped: see run_stages.
    """
    require_seeds(seeds, ())
    output = Path(output).absolute()
    Corpus(list(corpus))  # a missing file fails here, before the work starts
    claim(output, STUDY)
    chain = Chain(plan, config, [str(Path(name).absolute()) for name in corpus], output)
    stages = [*chain.data(), *chain.teach()]
    for seed in seeds:
        stages += chain.student(seed)
    done = dict(zip((stage.directory for stage in stages), run_stages(stages, progress)))
    bits: dict[str, dict[int, float]] = {}
    for step in STEPS:
        bits[step] = {seed: done[chain.directory(step, seed) / "eval"]["bits_per_byte"] for seed in seeds}
    results = {
        "study": STUDY,
        "config": config,
        "corpus": chain.corpus,
        "seeds": list(seeds),
        "steps": plan.base.train.steps,
        "criterion": plan.criterion,
    }
    results["teacher"] = {"bits_per_byte": done[output / "teacher/eval"]["bits_per_byte"]} | _shape(plan.teacher)
    results["tokenizer"] = done[output / "tokenizer/compact"]
    models = {"baseline": plan.baseline, "compact": plan.compact}
    results["chain"] = {step: _shape(models.get(step, plan.tweaked)) | _summary(step, bits) for step in STEPS}
    files.write_json(output / "results.json", results)
    return results


class Chain:
    """The stages that carry out a plan in a directory."""

    def __init__(self, plan: Plan, config: str, corpus: list[str], output: Path):
        self.plan, self.config, self.corpus, self.output = plan, config, corpus, output
        self.tokenizers = {size: output / "tokenizer" / size / "tokenizer" for size in ("full", "compact")}
        self.records = {size: output / "records" / size / "records" for size in ("full", "compact")}

    def directory(self, step: str, seed: int) -> Path:
        """Where a step's run and evaluation are."""
        return self.output / f"seed-{seed}" / step

    def data(self) -> list[Stage]:
        """The stages that make both tokenizers and both sets of records."""
        full, compact = self.tokenizers["full"], self.tokenizers["compact"]
        options = {"tokenizer": full, "records": self.records["full"], "vocab_size": self.plan.compact.vocab_size}
        compress = ("tokenizer", "compress", *_options(**options, output=compact))
        return [
            tokenizer_stage(full, self.plan.base, self.corpus),
            self._prepare("full"),
            self._stage(compact.parent, *compress, product=compact),
            self._prepare("compact"),
        ]

    def _prepare(self, size: str) -> Stage:
        return records_stage(self.records[size], self.plan.base, self.corpus, self.tokenizers[size])

    def teach(self) -> list[Stage]:
        """The training of the teacher, which all seeds share."""
        return self._trained(
            self.output / "teacher", self.plan.teacher, "full", [f"train.steps={self.plan.teacher_steps}"]
        )

    def student(self, seed: int) -> list[Stage]:
        """The stages of all steps of one seed."""
        plan, at = self.plan, {step: self.directory(step, seed) for step in STEPS}
        seeded = [f"train.seed={seed}", f"data.seed={seed}"]
        start, losses = at["inherited"] / "start/checkpoint", at["inherited"] / "losses/losses.npz"
        stages = self._trained(at["baseline"], plan.baseline, "full", seeded)
        stages += self._trained(at["compact"], plan.compact, "compact", seeded)
        stages += self._trained(at["tweaked"], plan.tweaked, "compact", seeded)
        stages += [self._inherit(start, seed), *self._trained(at["inherited"], plan.tweaked, "compact", seeded, start)]
        measured = "--data", str(self.records["compact"]), "--output", str(losses)
        stages.append(
            self._stage(losses.parent, "data", "losses", str(at["inherited"] / "run"), *measured, product=losses)
        )
        for step, temperature in (("second_round", 1.0), ("second_round_control", EVENLY)):
            order = at[step] / "order/order.npz"
            drawn = _options(losses=losses, keep=plan.keep, seed=seed, temperature=temperature, output=order)
            stages.append(self._stage(order.parent, "data", "resample", *drawn, product=order))
            overrides = [*seeded, f"data.order={order}", *self._second_round()]
            stages += self._trained(at[step], plan.tweaked, "compact", overrides, at["inherited"] / "run")
        return stages

    def _inherit(self, start: Path, seed: int) -> Stage:
        """The stage that makes the student's first checkpoint from the teacher's last one."""
        criterion, kept = self.plan.criterion, min(KEPT_ENDS, self.plan.tweaked.num_layers // 3)
        teacher = str(self.output / "teacher/run")
        argv = ["model", "inherit", teacher, "--config", self.config, *self._fields(self.plan.tweaked)]
        argv += _options(tokenizer=self.tokenizers["compact"], neurons=criterion, heads=criterion, channels=criterion)
        argv += _options(keep_first=kept, keep_last=kept, data=self.records["full"], seed=seed, output=start)
        return self._stage(start.parent, *argv, product=start)

    def _second_round(self) -> list[str]:
        base, plan = self.plan.base, self.plan
        rates = [
            f"optimizer.lr={plan.second_lr * base.optimizer.lr}",
            f"optimizer.min_lr={plan.second_lr * base.optimizer.min_lr}",
        ]
        return [f"train.steps={max(1, round(plan.keep * base.train.steps))}", *rates]

    def _trained(
        self, directory: Path, model: PiConfig, size: str, overrides: list[str], start: Path | None = None
    ) -> list[Stage]:
        """The stages that train a model, from random weights or from those of `start`, and score it on all held-out
        records."""
        run, records = directory / "run", self.records[size]
        argv = ["train", "--config", self.config, *self._fields(model), *overrides]
        argv += [*_options(data=records, output=run), "--resume"]
        argv += _options(init_from=start) if start else []
        return [
            self._stage(directory / "train", *argv),
            self._stage(directory / "eval", "eval", str(run), *_options(data=records), "--no-baselines"),
        ]

    def _fields(self, model: PiConfig) -> list[str]:
        """Overrides that turn the configuration file into the plan's configuration with this model."""
        changed = differences(load_config(self.config), dataclasses.replace(self.plan.base, model=model))
        overrides = []
        for section, fields in changed.items():
            overrides += [f"{section}.{name}={_yaml(value)}" for name, value in fields.items()]
        return overrides

    def _stage(self, directory: Path, *argv: str, product: Path | None = None) -> Stage:
        return Stage(directory, argv, config_to_dict(self.plan.base), product)


def _options(**values: object) -> list[str]:
    """Options of a command line: keep_first=3 becomes --keep-first 3."""
    options = []
    for name, value in values.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    return options


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shape(model: PiConfig) -> dict[str, Any]:
    names = ("vocab_size", "num_layers", "hidden_size", "num_heads", "ffn_hidden_size")
    return {"parameters": model.num_parameters()} | {name: getattr(model, name) for name in names}


def _summary(step: str, bits: dict[str, dict[int, float]]) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(list(bits[step].values()))
    summary: dict[str, Any] = {"bits_per_byte": bits[step], "mean": mean, "deviation": deviation}
    if step in PREVIOUS:
        summary["compared_with"] = PREVIOUS[step]
        summary["difference"] = paired_difference(list(bits[step].values()), list(bits[PREVIOUS[step]].values()))
    return summary
