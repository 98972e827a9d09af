"""`inherit` makes a student's checkpoint from a teacher's. mindspore is imported only when data are read."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files, runtime
from pangu_ms.core.errors import CheckpointError, ConfigError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.compress import load_vocab_map
from pangu_ms.data.loader import Loader
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit import fit, scores
from pangu_ms.research.inherit.gather import gather
from pangu_ms.research.inherit.masks import MaskOptions, learn_masks
from pangu_ms.research.inherit.selection import Selection, check_layers, select, spaced_layers, wanted_units
from pangu_ms.research.inherit.units import Units, unit_shapes

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The settings by which the parts of a student are chosen."""

    criteria: dict[str, str] = field(default_factory=lambda: {"channels": "l2", "heads": "l2", "neurons": "l2"})
    """One of scores.CRITERIA for each group of units."""
    layers: tuple[int, ...] | None = None
    """The teacher's layers that are kept; None keeps the first `keep_first`, the last `keep_last`, and uniformly spaced
    ones between them."""
    keep_first: int = 3
    keep_last: int = 3
    data: Path | str | None = None
    """Records that were made with the teacher's tokenizer. The criteria taylor and learned need them, and the losses
    are measured on them."""
    calibration_batches: int = 8
    batch_size: int = 8
    masks: MaskOptions = MaskOptions()
    seed: int = 1
    """Seed of the calibration batches, the random scores, and the initial values of parameters that the teacher
    lacks."""


def inherit(
    teacher: store.Checkpoint,
    config: RunConfig,
    output: Path,
    choices: Choices,
    tokenizer: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a student's first checkpoint, OUTPUT/step-00000000, whose state records how it was made.

    The units are scored in a model that consists of the chosen layers only, with all the units of the teacher.

    Args:
        teacher: the teacher's checkpoint.
        config: configuration of the student's run.
        output: directory for the student's checkpoint.
        choices: how the parts are chosen.
        tokenizer: directory of a compact tokenizer with its map to the teacher's; None keeps the teacher's.
        progress: show bars.

    Returns:
        A dict with output; layers; the sizes and number of parameters as [teacher's, student's]; the criterion of each
        group (None if all its units are kept); and, if there are records, the losses [teacher's, student's] and the
        split on which they were measured.

    Raises:
        ConfigError: the student cannot inherit from this teacher.
        DataError: the tokenizer or the records are not the teacher's.
        CheckpointError: the teacher's tensors are not those of its configuration.
        OutputError: `output` holds checkpoints.
    """
    store.require_no_checkpoints(output)
    old, new = teacher.config().model, config.model
    fit.require_fit(old, new)
    vocab, own_tokenizer = _vocabulary(teacher, new, tokenizer)
    layers = (
        spaced_layers(old, new, choices.keep_first, choices.keep_last) if choices.layers is None else choices.layers
    )
    check_layers(old, new, layers)
    criteria = _needed_criteria(old, new, choices)
    data = _Calibration(teacher, config, choices, choices.data) if choices.data else None
    dtypes = {name: spec.dtype for name, spec in old.parameters().items()}
    tensors = {name: np.asarray(array, dtypes.get(name)) for name, array in teacher.tensors().items()}
    store.check_names_and_shapes(str(teacher.path), tensors, old.parameter_shapes())

    # `thin` is the teacher with the chosen layers only, so that the dropped layers do not influence the scores.
    thin = dataclasses.replace(old, num_layers=new.num_layers)
    thin_tensors = gather(old, tensors, thin, select(old, thin, layers, {}))
    found = _scores(thin, thin_tensors, wanted_units(old, new), criteria, choices, data, progress)
    selection = select(old, new, layers, found, vocab)
    losses = data.losses(old, tensors, new, selection, progress) if data else {}
    made_of = {
        "teacher": str(teacher.path),
        "step": teacher.step,
        "manifest_sha256": files.sha256_json(teacher.manifest),
    }
    how = {
        "criteria": criteria,
        "choices": dataclasses.asdict(choices) | {"data": choices.data and str(choices.data)},
        "selection": selection.to_json(),
    }
    student = gather(old, tensors, new, selection, choices.seed)
    path = store.save(
        output,
        0,
        {"model": student},
        {"inherited": made_of | how},
        config,
        own_tokenizer,
        allowed=store.require_no_checkpoints,
    )
    return {"output": str(path), "layers": list(layers), **_sizes(old, new), "criteria": criteria, **losses}


def _vocabulary(
    teacher: store.Checkpoint, new: ModelConfig, tokenizer: Path | None
) -> tuple[np.ndarray | None, Path | None]:
    """The old id of each new id (None if the ids stay the same), and the directory of the student's tokenizer."""
    own, size = teacher.tokenizer_path(), teacher.config().model.vocab_size
    if tokenizer is None:
        if new.vocab_size != size:
            raise ConfigError(
                f"model.vocab_size={new.vocab_size}: the teacher has {size}: must be equal without --tokenizer; name a"
                " compact tokenizer"
            )
        return None, own
    found = load_vocab_map(tokenizer)
    if own is None:
        raise CheckpointError(
            f"{teacher.path}: holds no tokenizer, so --tokenizer cannot be checked against it; convert it again with"
            " its tokenizer"
        )
    found.require(Tokenizer.load(own), size)
    if len(found.old_ids) != new.vocab_size:
        raise ConfigError(
            f"model.vocab_size={new.vocab_size}: {tokenizer} has {len(found.old_ids)} pieces: must be equal; set it to"
            " that"
        )
    return found.old_ids, Path(tokenizer)


def _needed_criteria(old: ModelConfig, new: ModelConfig, choices: Choices) -> dict[str, str | None]:
    """The criterion of each group; None for a group whose units are all kept, since these need no scores."""
    wanted, shapes = wanted_units(old, new), unit_shapes(old)
    needed = {group: choices.criteria[group] if wanted[group] < units else None for group, (_, units) in shapes.items()}
    for group, criterion in needed.items():
        if criterion in scores.NEED_DATA and not choices.data:
            raise ConfigError(
                f"--{group} {criterion}: needs the loss on some data; add --data RECORDS, or use l1, l2 or random"
            )
    return needed


def _scores(
    thin: ModelConfig,
    tensors: Tensors,
    wanted: dict[str, int],
    criteria: dict[str, str | None],
    choices: Choices,
    data: "_Calibration | None",
    progress: bool,
) -> Units:
    """Scores of the units of each group that has a criterion."""
    found: Units = {}
    derivatives: scores.Derivatives | None = None  # one compiled graph for both criteria that need it
    for criterion in sorted({c for c in criteria.values() if c}):
        groups = [group for group, c in criteria.items() if c == criterion]
        if criterion == "random":
            made = scores.random_scores(thin, choices.seed)
        elif criterion in scores.NEED_DATA:
            assert data, "`_needed_criteria` refuses such a criterion without data"
            derivatives = derivatives or data.derivatives(thin, tensors)
            if criterion == "taylor":
                bar = progress_bar(progress, iterable=data.batches, desc="taylor", unit="batch")
                made = scores.taylor_scores(derivatives, bar)
            else:
                shapes = {group: unit_shapes(thin)[group] for group in groups}
                made = _learned_scores(derivatives, data.batches, shapes, wanted, choices.masks, progress)
        else:
            made = scores.norm_scores(thin, tensors, criterion)
        found |= {group: made[group] for group in groups}
    return found


def _learned_scores(
    derivatives: scores.Derivatives,
    batches: list[Batch],
    shapes: dict[str, tuple[int, int]],
    wanted: dict[str, int],
    options: MaskOptions,
    progress: bool,
) -> Units:
    """The logits of the masks after the last step; see `learn_masks`."""
    logits: Units = {}
    steps = learn_masks(derivatives, batches, shapes, wanted, options)
    for step_logits in progress_bar(
        progress, iterable=steps, total=options.mask_steps, desc="learn masks", unit="step"
    ):
        logits = step_logits
    return logits


def _sizes(old: ModelConfig, new: ModelConfig) -> dict[str, list[int]]:
    names = (
        "num_layers",
        "hidden_size",
        "num_heads",
        "num_kv_heads",
        "ffn_hidden_size",
        "vocab_size",
        "seq_length",
        "siaf_terms",
        "aug_shortcut_branches",
    )
    sizes = {name: [getattr(old, name), getattr(new, name)] for name in names if name in old.field_names()}
    return sizes | {"parameters": [old.num_parameters(), new.num_parameters()]}


class _Calibration:
    """Batches of records made with the teacher's tokenizer; computes losses and derivatives of models on them."""

    def __init__(self, teacher: store.Checkpoint, config: RunConfig, choices: Choices, records: Path | str):
        from pangu_ms.data.records import RecordSet

        for name in ("calibration_batches", "batch_size"):
            if getattr(choices, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(choices, name)}: must be at least 1")
        run = teacher.config()
        train = RecordSet.open(records, "train")
        train.check(run.model, teacher.tokenizer())
        self.device, self.choices, self.eod_reset = config.runtime.device, choices, run.data.eod_reset
        self.teacher = run.model
        loader = Loader(train, choices.batch_size, seed=choices.seed, eod_reset=self.eod_reset, model=self.teacher)
        self.batches: list[Batch] = list(itertools.islice(loader.batches(), choices.calibration_batches))
        self.held_out = RecordSet.open(records, "held_out") if train.has_split("held_out") else None
        runtime.start(self.device)

    def derivatives(self, config: ModelConfig, tensors: Tensors) -> scores.Derivatives:
        """The function that computes the loss of a model and its derivatives with respect to masks on its units."""
        from pangu_ms.research.inherit.gradients import MaskDerivatives

        return MaskDerivatives(config, tensors)

    def losses(
        self, old: ModelConfig, tensors: Tensors, new: ModelConfig, selection: Selection, progress: bool
    ) -> dict[str, Any]:
        """The losses of the teacher and of the student.

        For this measurement the student keeps the teacher's vocabulary and context, because the records were made for
        them.
        """
        same = dataclasses.replace(new, vocab_size=old.vocab_size, seq_length=old.seq_length)
        whole = dataclasses.replace(selection, vocab=np.arange(old.vocab_size))
        with progress_bar(progress, total=2, desc="losses", unit="model") as bar:
            found = [self._loss(old, tensors)]
            bar.update()
            found.append(self._loss(same, gather(old, tensors, same, whole, self.choices.seed)))
            bar.update()
        return {"loss": found, "loss_split": "held_out" if self.held_out else "train"}

    def _loss(self, config: ModelConfig, tensors: Tensors) -> float:
        from pangu_ms.data.loader import sequential_batches
        from pangu_ms.eval.perplexity import Evaluator
        from pangu_ms.models.build import build_model, fill, weights

        model = build_model(config)
        fill(weights(model), tensors)
        choices, batches = self.choices, iter(self.batches)
        if self.held_out:
            batches = sequential_batches(
                self.held_out, choices.batch_size, self.eod_reset, choices.calibration_batches, self.teacher
            )
        return Evaluator(model).score(batches).loss
