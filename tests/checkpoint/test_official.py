"""The released form of PanGu-alpha: parts of all ranks, strategy file, embeddings of their own."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, sharded, store
from pangu_ms.checkpoint.convert import Parts
from pangu_ms.cli.main import main
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.parallel.plan import Plan
from tests.bench import official as official_bench
from tests.checkpoint.common import assert_same
from tests.checkpoint.dying import lives
from tests.checkpoint.releases import (
    OVERRIDES,
    ckpt,
    layout_of,
    official_name,
    old_name,
    small,
    to_official,
    write_release,
    write_strategy,
)

CONFIG = ["--config", "alpha/tiny", *OVERRIDES]
PLAN = ["parallel.data_parallel=2", "parallel.model_parallel=2", "parallel.optimizer_shard=true", "train.batch_size=4"]


@pytest.fixture(scope="module")
def ours():
    random = np.random.default_rng(5)
    return {
        name: random.normal(size=shape).astype(np.float32) for name, shape in small().model.parameter_shapes().items()
    }


@pytest.fixture(scope="module")
def released(ours, tmp_path_factory):
    """A release of eight parts; tests that change it copy it."""
    root = tmp_path_factory.mktemp("released")
    write_release(root, to_official(ours))
    return root


@pytest.fixture
def release(released, tmp_path):
    shutil.copytree(released, tmp_path / "release")
    return tmp_path / "release"


def command(root, *words) -> list[str]:
    start = ["convert", str(root / "parts"), "--from", "official", "--strategy", str(root / "pangu_ckpt_strategy.ckpt")]
    return [*start, "--embeddings", str(root / "npy"), *CONFIG, *map(str, words)]


def test_a_release_is_the_model(released, ours, tmp_path, capsys):
    assert main(command(released, "--output", tmp_path / "ours", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0] == "weights: float32, kept"
    checkpoint = store.open_checkpoint(tmp_path / "ours")
    assert_same(checkpoint.tensors(), ours)
    assert checkpoint.config() == small()
    imported = checkpoint.state()["imported"]
    assert imported["parts"] == 8 and list(imported["sha256"]) == ["pangu_ckpt_strategy.ckpt"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [".lock", "step-00000000"]
    # And out again, as one file of official names: what the parts and tables hold, bit for bit.
    convert.export_file(tmp_path / "ours", "official", tmp_path / "w.safetensors")
    back = foreign.read_file(tmp_path / "w.safetensors")
    assert_same(back, to_official(ours))


def to_directories_of_ranks(parts, root) -> None:
    """The same parts as MindSpore's tools want them."""
    for path in parts.iterdir():
        rank = root / f"rank_{path.stem.removeprefix('filerted_')}"
        rank.mkdir(parents=True)
        (rank / "any.ckpt").hardlink_to(path)


def test_mindspore_merges_the_parts_to_the_same_tensors(released, ours, tmp_path, mindspore_cpu):
    import mindspore as ms

    to_directories_of_ranks(released / "parts", tmp_path / "ranks")
    names = {name: old_name(name) for name in to_official(ours)}
    layouts = {
        old: layout_of(name, array.shape) for (name, array), old in zip(to_official(ours).items(), names.values())
    }
    write_strategy(tmp_path / "strategy.ckpt", layouts)  # with the names of the parts, without aliases
    ms.transform_checkpoints(str(tmp_path / "ranks"), str(tmp_path / "out"), "m", str(tmp_path / "strategy.ckpt"))
    merged = ms.load_checkpoint(str(tmp_path / "out/rank_0/m0.ckpt"))
    of_ours = store.open_checkpoint(imported(released, tmp_path / "ours")).tensors()
    for name, array in to_official(of_ours).items():
        if not name.endswith("embedding_table"):
            np.testing.assert_array_equal(merged[names[name]].asnumpy(), array)


def test_straight_to_another_plan_from_directories_of_ranks(released, ours, tmp_path):
    to_directories_of_ranks(released / "parts", tmp_path / "ranks")
    words = command(released, "--output", tmp_path / "ours", *PLAN)
    words[1] = str(tmp_path / "ranks")
    assert main(words) == 0
    checkpoint, config = store.open_checkpoint(tmp_path / "ours"), small(*PLAN)
    assert checkpoint.config() == config
    assert_same(checkpoint.tensors(), ours)
    of_ranks = dict(sharded.rank_tensors(Plan.of(config), config.model.parameter_shapes()))
    assert set(of_ranks) == {0, 1}  # the others own nothing of so small a model
    for rank, own in of_ranks.items():
        file = foreign.read_file(checkpoint.path / sharded.rank_file("model", rank))
        assert_same(file, {name: ours[name][part] for name, part in own.items()})


def test_parts_of_two_pipeline_stages(ours, tmp_path):
    """Ranks 0 to 3 have the tables and the first block, 4 to 7 the rest, by a strategy file for each."""
    (tmp_path / "parts").mkdir()
    strategies = [tmp_path / f"stage{stage}.ckpt" for stage in (0, 1)]
    for stage, strategy in enumerate(strategies):
        first = ("backbone.embedding", "backbone.top_query_embedding", "backbone.blocks.0.")
        here = {name: array for name, array in to_official(ours).items() if name.startswith(first) == (stage == 0)}
        layouts = {name: layout_of(name, array.shape, 2, 2) for name, array in here.items()}
        write_strategy(strategy, layouts, stage)
        for local in range(4):
            held = {name: np.ascontiguousarray(here[name][layout.slices(local)]) for name, layout in layouts.items()}
            (tmp_path / "parts" / f"w{4 * stage + local}.ckpt").write_bytes(ckpt(held.items()))
    output = tmp_path / "ours"
    convert.import_file(tmp_path / "parts", "official", small(), output, parts=Parts(strategies))
    assert_same(store.open_checkpoint(output).tensors(), ours)


def test_embeddings_may_lie_beside_the_parts(release, ours, tmp_path):
    (release / "parts/._filerted_0.ckpt").write_bytes(b"macOS adds such files")
    rest = {"backbone.word_embedding.embedding_table": np.zeros((5, 16), np.float32)}
    rewrite(release / PART, lambda found: found | rest)  # of no account: the table replaces it
    for path in (release / "npy").iterdir():
        shutil.move(path, release / "parts")
    words = command(release, "--output", tmp_path / "ours", "--dtype", "bfloat16")
    del words[words.index("--embeddings") : words.index("--embeddings") + 2]
    assert main(words) == 0
    assert {tensor.spec.code for tensor in store.open_checkpoint(tmp_path / "ours").stored().values()} == {"BF16"}


def test_a_dry_run_shows_the_map_and_writes_nothing(released, ours, tmp_path, capsys):
    assert main(command(released, "--dry-run", "--dtype", "float16", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["ours"]: row for row in told["tensors"]}
    assert list(rows) == list(ours) and told["values"] == sum(array.size for array in ours.values())
    assert rows["blocks.1.ffn.up.weight"] == {
        "foreign": "backbone.blocks.1.output.mapping.weight",
        "foreign_shape": [16, 48],
        "foreign_dtype": "float32",
        "slices": 8,
        "ours": "blocks.1.ffn.up.weight",
        "shape": [48, 16],
        "transposed": True,
        "dtype": "float16",
    }
    assert rows["word_embedding.weight"]["foreign"] == "pangu_alpha_2.6B_word_embedding.npy"
    assert main(command(released, "--dry-run", "--output", tmp_path / "ours")) == 0
    shown = capsys.readouterr().out
    row = "backbone.blocks.1.output.mapping.weight 16 x 48 8 transposed to blocks.1.ffn.up.weight 48 x 16 float32"
    assert row in " ".join(shown.split()) and shown.endswith("; nothing was written\n")
    assert not list(tmp_path.iterdir())


def rewrite(path, change) -> None:
    """Write a part again with other tensors."""
    tensors = foreign.read_file(path)
    path.write_bytes(ckpt(change(tensors).items()))


def deeper(release) -> None:
    """The strategy file of a model with more layers."""
    layouts = {}
    for name, shape in small("model.num_layers=5").model.parameter_shapes().items():
        layouts[old_name(official_name(name))] = layout_of(official_name(name), shape)
    write_strategy(release / "pangu_ckpt_strategy.ckpt", layouts)


def stage_far_away(release) -> None:
    """A merged strategy file of stages 0 and 500,000,000."""
    layouts = {old_name(official_name(name)): shape for name, shape in small().model.parameter_shapes().items()}
    named = {f"{n}-{name}": layout_of(name, shape) for n in (0, 500_000_000) for name, shape in layouts.items()}
    write_strategy(release / "pangu_ckpt_strategy.ckpt", named)


def list_of(release, *files) -> str:
    return "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def save_word_table(release, rows) -> None:
    np.save(release / "npy" / "pangu_alpha_2.6B_word_embedding.npy", np.zeros((rows, 16), np.float32))


PART = "parts/filerted_5.ckpt"
DAMAGE = {
    "missing": (lambda root: (root / PART).unlink(), "parts: part 5 is missing; all 8 are needed"),
    "truncated": (lambda root: os.truncate(root / PART, 1000), "filerted_5.ckpt: not a whole MindSpore checkpoint"),
    "doubled": (
        lambda root: shutil.copy(root / PART, root / "parts/filerted_05.ckpt"),
        "filerted_05.ckpt and filerted_5.ckpt are both part 5",
    ),
    "one too many": (
        lambda root: shutil.copy(root / PART, root / "parts/filerted_8.ckpt"),
        "filerted_8.ckpt: is part 8, and the strategy is of 8 parts",
    ),
    "foreign": (
        lambda root: shutil.copy(root / PART, root / "parts/other_9.ckpt"),
        "holds filerted_0.ckpt and other_9.ckpt; the parts of one release have one name",
    ),
    "without a number": (
        lambda root: shutil.copy(root / PART, root / "parts/more.ckpt"),
        "more.ckpt: has no number; the parts of a release are NAME_0.ckpt",
    ),
    "a stage far away": (stage_far_away, "stages [0, 500000000] are there, 1 is not"),
    "another strategy": (deeper, "the strategy has 4 numbered blocks, the parts have 2); must be of the same model"),
    "another step": (
        lambda root: rewrite(root / PART, lambda found: found | {"step_num": np.array(71, np.int32)}),
        "filerted_5.ckpt: step_num is 71, in filerted_0.ckpt 70; all parts must be of one step",
    ),
    "two spellings": (
        lambda root: rewrite(root / PART, lambda found: found | {"word_embedding_table": np.zeros(3, np.float32)}),
        "filerted_5.ckpt: backbone.embedding.word_embedding.embedding_table stands there twice",
    ),
    "another slice": (
        lambda root: rewrite(root / PART, lambda found: found | {"backbone.layernorm.gamma": np.zeros(3, np.float32)}),
        "filerted_5.ckpt: rank 5 has backbone.layernorm.gamma as F32 [3]; must be F32 [16]",
    ),
    "symbolic links in a ring": (
        lambda root: (root / PART).unlink() or (root / PART).symlink_to(root / PART),
        "filerted_5.ckpt: not a whole MindSpore checkpoint",
    ),
    "unknown tensor": (
        lambda root: rewrite(root / PART, lambda found: found | {"backbone.adapter.weight": np.zeros(3, np.float32)}),
        "does not name backbone.adapter.weight, which",
    ),
    "no embeddings": (lambda root: shutil.rmtree(root / "npy") or (root / "npy").mkdir(), "npy: holds no embeddings"),
    "two tables": (
        lambda root: shutil.copy(
            root / "npy/pangu_alpha_2.6B_word_embedding.npy", root / "npy/pangu_alpha_13B_word_embedding.npy"
        ),
        "pangu_alpha_13B_word_embedding.npy and pangu_alpha_2.6B_word_embedding.npy are both the",
    ),
    "cut table": (
        lambda root: os.truncate(root / "npy/pangu_alpha_2.6B_word_embedding.npy", 500),
        "word_embedding.npy: not a whole .npy array (372 bytes for float32 [40, 16])",
    ),
    "another vocabulary": (
        lambda root: save_word_table(root, 41),
        "embedding_table (41, 16) instead of (40, 16); names and shapes must be exactly those of the configuration; use"
        " the one that belongs to these weights: family alpha with hidden_size=16, num_layers=3, vocab_size=41,"
        " ffn_hidden_size=48, seq_length=8 (backbone.embedding.word_embedding.embedding_table is"
        " pangu_alpha_2.6B_word_embedding.npy)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_a_release_is_one_line(release, tmp_path, capsys, damage):
    change, message = DAMAGE[damage]
    change(release)
    assert main(command(release, "--output", tmp_path / "ours")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pangu")]
    assert message in line
    assert not (tmp_path / "ours").exists()


def test_another_model_than_the_configurations(released, tmp_path, capsys):
    words = [word.replace("num_layers=3", "num_layers=2") for word in command(released, "--output", tmp_path / "ours")]
    assert main(words) == 2
    assert "16 unexpected: backbone.blocks.1." in capsys.readouterr().err


def test_md5_of_the_parts(release, tmp_path, capsys):
    parts = sorted((release / "parts").iterdir())
    (tmp_path / "md5").write_text(list_of(release, *parts))
    assert main(command(release, "--output", tmp_path / "a", "--md5", tmp_path / "md5")) == 0
    shown = capsys.readouterr().out
    assert "md5: 8 of 12 files are as md5 says; the list does not name pangu_alpha_2.6B_position_embedding.npy" in shown
    content = bytearray(parts[3].read_bytes())
    content[200] ^= 1
    parts[3].write_bytes(content)
    for text, message in (
        (None, "filerted_3.ckpt: has MD5 "),
        ("0" * 32 + "  other.ckpt\n", "md5: names none of the files that are read, such as filerted_0.ckpt"),
        ("hello\n", "md5: line 1 is 'hello'; must be an MD5, two spaces and a file's name"),
    ):
        (tmp_path / "md5").write_text(text or (tmp_path / "md5").read_text())
        assert main(command(release, "--output", tmp_path / "b", "--md5", tmp_path / "md5")) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
        assert main(command(release, "--dry-run", "--md5", tmp_path / "md5")) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-shard-size", "2GB"], "--max-shard-size goes with --to"),
        (["--md5", "list"], "--embeddings and --md5 go with --strategy"),
        (["--strategy", "file"], "--strategy needs --config NAME"),
        (["--dry-run"], "official weights are one file, or parts with a --strategy"),
    ],
)
def test_options_that_do_not_go_together(released, tmp_path, capsys, words, message):
    base = ["convert", str(released / "parts"), "--from", "official", "--output", str(tmp_path / "x")]
    with contextlib.suppress(SystemExit):
        assert main([*base, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gguf", "gguf: unknown format; alpha weights are known as official, "),
        ("megatron", "--strategy is of parts that MindSpore saved, with official names or those of mindformers; name"),
        ("huggingface", "or leave --strategy out for huggingface"),
    ],
)
def test_parts_of_another_format(released, tmp_path, capsys, source, message):
    words = [source if word == "official" else word for word in command(released, "--output", tmp_path / "x")]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_directory_in_an_unknown_format(released, tmp_path, capsys):
    assert main(["convert", str(released / "parts"), "--from", "gguf", "--output", str(tmp_path / "x")]) == 2
    assert "gguf: unknown format; weights are read as official, " in capsys.readouterr().err


def imported(root, output, **options):
    parts = Parts([root / "pangu_ckpt_strategy.ckpt"], root / "npy")
    return convert.import_file(root / "parts", "official", small(*PLAN), output, sharded=True, parts=parts, **options)


def interrupt(monkeypatch, run) -> None:
    """Let a conversion end at a full disk when it has written its small files."""

    def full(self, wanted):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="run the same command again"):
        patch.setattr(sharded.StoredTensor, "read", full)
        run()


def test_an_interrupted_run_compares_with_another_list_again(release, tmp_path, monkeypatch):
    first, other, *_ = sorted((release / "parts").iterdir())
    parts = Parts([release / "pangu_ckpt_strategy.ckpt"], release / "npy", tmp_path / "md5")

    def run(md5: str, part: Path) -> None:
        (tmp_path / "md5").write_text(f"{md5}  {part.name}\n")
        convert.import_file(release / "parts", "official", small(), tmp_path / "ours", parts=parts)

    interrupt(monkeypatch, lambda: run(hashlib.md5(first.read_bytes()).hexdigest(), first))
    with pytest.raises(CheckpointError, match=f"{other.name}: has MD5"):
        run("0" * 32, other)


def test_an_interrupted_run_goes_on_with_its_tokenizer_only(released, tmp_path, monkeypatch):
    class Saved:
        """What the conversion needs of a tokenizer."""

        content = "one"

        def save(self, path: Path) -> None:
            path.mkdir()
            (path / "tokenizer.json").write_text(self.content)

    monkeypatch.setattr(convert, "_tokenizer_of", lambda *_: Saved())
    monkeypatch.setattr(convert, "_describe_tokenizer", lambda _: "a tokenizer")
    interrupt(monkeypatch, lambda: imported(released, tmp_path / "ours"))
    Saved.content = "two"
    with pytest.raises(OutputError, match="holds an interrupted conversion of other files or with other options"):
        imported(released, tmp_path / "ours")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_keeps_what_is_finished_and_looks_like_no_checkpoint(released, tmp_path, monkeypatch, capsys):
    whole = imported(released, tmp_path / "whole")
    n = 1
    kept = set()
    while not lives(n, lambda: imported(released, tmp_path / "ours")):
        if not (tmp_path / "ours/step-00000000").exists():
            assert store.latest_valid(tmp_path / "ours")[0] is None if (tmp_path / "ours").exists() else True
            journal = tmp_path / "ours/.partial/journal.json"
            kept.add(len(json.loads(journal.read_text())["finished"]) if journal.exists() else 0)
        n += 40
    assert len(kept) > 2  # deaths before, between and after files
    for path in whole.iterdir():
        if path.name != "manifest.json":
            assert (store.open_checkpoint(tmp_path / "ours").path / path.name).read_bytes() == path.read_bytes()


def test_a_full_disk_keeps_what_is_finished(released, tmp_path, monkeypatch, capsys):
    read, seen = sharded.StoredTensor.read, []

    def counted(self, wanted):
        seen.append(1)
        if len(seen) == limit:
            raise OSError(28, "No space left on device")
        return read(self, wanted)

    monkeypatch.setattr(sharded.StoredTensor, "read", counted)
    limit = 0
    imported(released, tmp_path / "whole")
    total, limit = len(seen), len(seen) + 60
    with pytest.raises(OutputError, match="nothing was committed; free some room and run the same command again"):
        imported(released, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="no valid checkpoint .*.partial: a conversion that did not finish"):
        store.open_checkpoint(tmp_path / "ours")
    lines: list[str] = []
    with pytest.raises(OutputError, match="holds an interrupted conversion of other files or with other options"):
        imported(released, tmp_path / "ours", dtype="float16")
    before, limit = len(seen), 0
    imported(released, tmp_path / "ours", say=lines.append)
    assert any(line.startswith("goes on after ") for line in lines)
    assert 0 < len(seen) - before < total
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [".lock", "step-00000000"]
    first, again = store.open_checkpoint(tmp_path / "whole"), store.open_checkpoint(tmp_path / "ours")
    assert_same(first.tensors(), again.tensors())


def test_too_little_room_is_said_before_anything_is_written(released, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="1000 bytes are free; the tensors take"):
        imported(released, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
def test_memory_is_below_twice_the_largest_tensor_at_the_released_widths(tmp_path):
    """The widths of 2.6B with two layers, in 512 parts: a model of 1.1 GB, whose word table has 391 MiB."""
    words = ["vocab_size=40000", "hidden_size=2560", "num_heads=32", "seq_length=1024", "num_layers=2"]
    words = [f"model.{word}" for word in [*words, "ffn_hidden_size=10240"]]
    result = official_bench.measure(tmp_path, words, None, beside=False)
    assert result["ours"]["bytes"] < 2 * result["largest_bytes"] < result["model_bytes"]


@pytest.mark.slow
@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.skipif("PANGU_OFFICIAL_STRATEGY" not in os.environ, reason="needs the released strategy file of 2.6B")
def test_a_release_of_the_full_depth_under_the_released_strategy_is_what_mindspore_merges(tmp_path):
    """PANGU_OFFICIAL_STRATEGY names pangu_alpha_2.6B_ckpt_strategy.ckpt."""
    words = ["vocab_size=1024", "hidden_size=512", "num_heads=4", "seq_length=16", "num_layers=32"]
    words = [f"model.{word}" for word in [*words, "ffn_hidden_size=2048"]]
    result = official_bench.measure(tmp_path, words, Path(os.environ["PANGU_OFFICIAL_STRATEGY"]))
    assert result["differences"] == []
