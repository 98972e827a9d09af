"""`pangu launch`: whose rank runs where, with which variables; mistakes are found before anything starts."""

import dataclasses
import functools
import json
import subprocess
import sys

import pytest

from pangu_ms.core.console import guarded
from pangu_run.cli import launch as launch_cli
from pangu_run.cli import ranktable as rank_table_cli
from pangu_run.cli.launch import main, parse
from tests.faults.rank_tables import dump, table

ON_ASCEND = [
    "runtime.device=Ascend",
    "parallel.devices_per_server=4",
    "parallel.data_parallel=2",
    "parallel.model_parallel=2",
]
ON_ASCEND += ["parallel.pipeline_stage=2", "parallel.micro_batch_num=2"]


@pytest.fixture
def launch(capfd):
    def start(*words):
        try:
            code = guarded("pangu launch", lambda: main([str(word) for word in words]))
        except SystemExit as refused:  # the program has told of the mistake
            code = refused.code
        return code, *capfd.readouterr()

    return start


@pytest.fixture
def unchecked(tmp_path, monkeypatch, answering):
    """Runs are not looked at but for their ranks: reading records takes seconds."""
    change = functools.partial(dataclasses.replace, argv=["--config", "alpha/tiny"], output=str(tmp_path / "run"))
    monkeypatch.setattr(launch_cli, "describe", lambda words, *options: change(launch_cli.placement(words)))


def dry(launch, *words):
    code, out, err = launch("--dry-run", "--json", *words)
    assert code == 0, err
    return json.loads(out)


def test_ranks_of_a_plan_find_their_devices(launch, unchecked, tmp_path):
    """2 stages of dp 2 x mp 2 on two servers: a replica's stages share a server, MindSpore's ranks of a stage do
    not."""
    (tmp_path / "hccl.json").write_bytes(dump(table(2, 4)))
    degrees = [
        "parallel.data_parallel=2",
        "parallel.model_parallel=2",
        "parallel.pipeline_stage=2",
        "parallel.micro_batch_num=2",
        "parallel.devices_per_server=4",
    ]
    words = [
        "train",
        "--config",
        "alpha/tiny",
        "--output",
        tmp_path / "run",
        "model.num_heads=4",
        "runtime.device=Ascend",
        *degrees,
    ]
    rows = [
        dry(launch, "--rank-table", tmp_path / "hccl.json", "--server-id", server, *words)
        for server in ("10.0.0.0", "10.0.0.1")
    ]
    assert [[row["rank"] for row in host] for host in rows] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    for row in rows[0] + rows[1]:
        variables = row["environment"]
        assert (variables["RANK_ID"], variables["DEVICE_ID"], variables["RANK_SIZE"]) == (
            str(row["rank"]),
            str(row["device"]),
            "8",
        )
        assert variables["RANK_TABLE_FILE"] == str(tmp_path / f"run/job/rank_table_{row['host']}.json")
        assert "MS_ROLE" not in variables and "PANGU_CORES" in variables
        assert row["command"][1:5] == ["-m", "pangu_ms", "train", "--config"]
    clustered = dry(
        launch, "--start", "cluster", "--rank-table", tmp_path / "hccl.json", "--server-id", "10.0.0.1", *words
    )[0]["environment"]
    assert (clustered["MS_ROLE"], clustered["MS_SCHED_HOST"], clustered["MS_SCHED_PORT"]) == (
        "MS_WORKER",
        "10.0.0.0",
        "8118",
    )
    assert clustered["MS_WORKER_NUM"] == "8" and "RANK_TABLE_FILE" not in clustered
    assert not (tmp_path / "run").exists()


def test_options_of_the_launcher_become_words_of_the_run(launch, request, tmp_path, records, tiny_overrides):
    rows = dry(
        launch, "--num-ranks", 4, "--bind", "numa", "train", "--data", records, "--output", tmp_path, *tiny_overrides
    )
    assert (
        len(rows) == 4
        and rows[3]["command"][-1] == "parallel.data_parallel=4"
        and rows[3]["environment"]["MS_NODE_ID"] == "3"
    )
    code, _, err = launch("train", "--output", tmp_path / "new", "--data", tmp_path, *tiny_overrides)
    assert code == 2 and "no MindRecord file" in err and err.count("\n") == 1  # said by the program itself, once
    request.getfixturevalue("answering")  # a child has answered above
    words = ["--config", "pi/7b_64x32gib", "--data", records, "--output", tmp_path]
    smoke = dry(launch, "--smoke", "train", *words, "model.seq_length=32", "model.vocab_size=384")
    assert len(smoke) == 2 and "parallel.data_parallel=2" in smoke[0]["command"]


def test_devices_are_counted_among_the_visible_ones(launch, unchecked, tmp_path, monkeypatch):
    """A container shows devices 4 to 7 alone: the table keeps the host's numbers, ranks open 0 to 3, and a dry run says
    so."""
    monkeypatch.setenv("ASCEND_VISIBLE_DEVICES", "4-7")
    four = table(1, 8)
    four["server_list"][0]["device"] = [
        device | {"rank_id": str(i)} for i, device in enumerate(four["server_list"][0]["device"][4:])
    ]
    (tmp_path / "hccl.json").write_bytes(dump(four))
    words = [
        "--rank-table",
        tmp_path / "hccl.json",
        "--server-id",
        "10.0.0.0",
        "train",
        "--config",
        "alpha/tiny",
        "runtime.device=Ascend",
    ]
    words += ["parallel.data_parallel=4", "parallel.devices_per_server=4"]
    rows = dry(launch, *words)
    assert [(row["device"], row["environment"]["DEVICE_ID"]) for row in rows] == [
        (4, "0"),
        (5, "1"),
        (6, "2"),
        (7, "3"),
    ]
    assert "DEVICE_ID counts those" in launch("--dry-run", *words)[1]
    monkeypatch.delenv("ASCEND_VISIBLE_DEVICES")
    assert "DEVICE_ID counts those" not in launch("--dry-run", *words)[1]


@pytest.mark.parametrize(
    ("servers", "devices", "degrees", "fits"),
    [
        (2, 4, ON_ASCEND, True),
        (4, 2, ON_ASCEND, False),
        (2, 8, ON_ASCEND, False),
        (4, 2, ["parallel.data_parallel=8"], True),
        (4, 1, ["parallel.data_parallel=8"], False),
    ],
    ids=["in another order", "small servers", "too many", "CPU", "too few for the CPU"],
)
def test_a_table_that_is_launched_has_no_faults_and_the_other_way_round(
    launch, unchecked, tmp_path, capfd, servers, devices, degrees, fits
):
    (tmp_path / "hccl.json").write_bytes(dump(table(servers, devices)))
    plan = ["--config", "alpha/tiny", "model.num_heads=4", *degrees]
    where = ["--rank-table", tmp_path / "hccl.json", "--server-id", "10.0.0.0", "--master-address", "127.0.0.1"]
    launched, _, error = launch("--dry-run", *where, "train", *plan)
    assert launched == (0 if fits else 2), error
    assert rank_table_cli.main(["check", str(tmp_path / "hccl.json"), *plan]) == launched, capfd.readouterr().out


def test_cpu_ranks_of_several_hosts_are_for_one_machine(launch, unchecked):
    """Who is reached by a loopback address is on this machine; anybody else's ranks would wait for each other in
    vain."""
    words = ["train", "--config", "alpha/tiny", "parallel.data_parallel=2"]
    code, _, err = launch("--dry-run", "--hosts", "a,b", "--server-id", "b", *words)
    assert code == 2 and "a: leads CPU ranks of several hosts" in err
    for where in (
        ["--hosts", "127.0.0.1,127.0.0.2", "--server-id", "127.0.0.2"],
        ["--hosts", "a,b", "--server-id", "b", "--master-address", "127.0.0.1"],
    ):
        assert [(row["rank"], row["environment"]["MS_SCHED_HOST"]) for row in dry(launch, *where, *words)] == [
            (1, "127.0.0.1")
        ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "run"], "eval: runs on one device"),
        (["--stream", "first", "train"], "--stream first: must be the number of a rank, or none"),
        (["--start", "rank-table", "train"], "--start rank-table: needs --rank-table FILE"),
        (["--rank-table", "a", "--hosts", "b", "train"], "--hosts: the rank table names the hosts"),
        (["--grace", "-1", "train"], "--grace -1: must be from 0"),
        (["--master-port", "70000", "train"], "--master-port 70000: must be from 1024 to 65534"),
        (["--master-port", "-5", "train"], "--master-port -5: must be from 1024"),
        (["--start-timeout", "inf", "train"], "--start-timeout inf: must be from 0.1 to 10000000"),
        (["--hang-timeout", "0", "train"], "--hang-timeout 0: must be from 0.1"),
        (["--backoff", "nan", "train"], "--backoff nan: must be from 0"),
        (["--wait-table", "-1", "train"], "--wait-table -1: must be from 0"),
        (["--max-restarts", "-1", "train"], "--max-restarts -1: must be from 0"),
        (
            ["--max-restarts", "many", "train"],
            "argument --max-restarts: invalid int value: 'many'; see `pangu launch --help`",
        ),
        (["--hosts", "", "train"], "--hosts: is empty"),
        (["--hosts", "a,,b", "train"], "--hosts 'a,,b': has an empty name"),
        (["--hosts", "a, b,a", "train"], "--hosts a, b,a: has a twice"),
        (["--hosts", "node[1-4]", "train"], "scontrol show hostnames"),
        (["--rank-table", "a", "--hosts", "", "train"], "--hosts: is empty"),
        (["--server-id", "", "train"], "--server-id: is empty"),
        (["--json", "train"], "--json: is of --dry-run"),
        (["--skip-paths", "train"], "--skip-paths: is of --dry-run"),
        (
            ["--dryrun", "train"],
            "unrecognized arguments: --dryrun; did you mean --dry-run? put `train` before its options",
        ),
        (["--max-restart=x", "--hots", "a", "train"], "argument --max-restarts: invalid int value: 'x'"),
        (["--hots", "a", "train"], "did you mean --hosts?"),
        (["--device", "asend", "train"], "; did you mean ascend?"),
        (["trian", "--config", "alpha/tiny"], "trian: ranks are launched for train; did you mean train?"),
        (["train", "--confg", "alpha/tiny", "--output", "OUT"], "did you mean --config?"),
        ([], "the following arguments are required: train"),
        (
            ["--config", "alpha/tiny", "--output", "OUT"],
            "unrecognized arguments: --config; put `train` before its options",
        ),
        (["--config=alpha/tiny"], "put `train` before its options"),
        (
            ["--stream", "2", "train", "--data", "RECORDS", "--output", "OUT", "SIZES", "parallel.data_parallel=2"],
            "--stream 2: the job has 2 ranks",
        ),
        (
            ["--num-ranks", "3", "train", "--output", "OUT", "parallel.data_parallel=2"],
            "--num-ranks: parallel.data_parallel=2 is given, too",
        ),
        (
            [
                "--hosts",
                "a,b",
                "--server-id",
                "a",
                "train",
                "--data",
                "RECORDS",
                "--output",
                "OUT",
                "SIZES",
                "parallel.data_parallel=3",
            ],
            "2 hosts cannot share 3 ranks",
        ),
        (
            [
                "--hosts",
                "a,b",
                "--server-id",
                "c",
                "train",
                "--data",
                "RECORDS",
                "--output",
                "OUT",
                "SIZES",
                "parallel.data_parallel=2",
            ],
            "no server is called c",
        ),
        (["train", "--data", "RECORDS", "--output", "OUT", "SIZES", "model.vocab_size=7"], "vocab_size"),
        (["train", "--output", "OUT", "model.hiden_size=8"], "hidden_size"),
        (["--rank-table", "nowhere.json", "train", "--data", "RECORDS", "--output", "OUT", "SIZES"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(launch, answering, tmp_path, records, tiny_overrides, words, says):
    filled = [
        x
        for word in words
        for x in {"OUT": [tmp_path / "out"], "RECORDS": [records], "SIZES": tiny_overrides}.get(word, [word])
    ]
    code, _, err = launch(*filled)
    assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_login_node_needs_none_of_the_clusters_paths(launch, answering, tmp_path):
    """What was not looked at is said; without the option what is missing is a mistake."""
    (tmp_path / "hccl.json").write_bytes(dump(table(2, 8)))
    (tmp_path / "mine.yaml").write_text("base: alpha/13b_16x64gib\n")
    cluster = ["--data", "/cluster/records", "--output", "/cluster/run", "--init-from", "/cluster/weights"]
    words = [
        "--rank-table",
        tmp_path / "hccl.json",
        "--server-id",
        "10.0.0.1",
        "train",
        "--config",
        tmp_path / "mine.yaml",
        *cluster,
    ]
    code, _, err = launch("--dry-run", *words)
    assert code == 2 and "/cluster/records: no MindRecord file" in err
    code, out, err = launch("--dry-run", "--skip-paths", "--json", *words, "data.order=/cluster/order.npz")
    assert code == 0 and [row["rank"] for row in json.loads(out)] == list(range(8, 16))
    unchecked = (
        "records /cluster/records, --output /cluster/run, --init-from /cluster/weights, data.order=/cluster/order.npz"
    )
    assert err == f"pangu launch: not checked here: {unchecked}\n"


def test_the_launch_layer_starts_without_heavy_modules():
    program = (
        "import sys; import pangu_run.cli.main, pangu_run.cli.launch; print(sorted({'mindspore', 'numpy'}"
        " & set(sys.modules)), __import__('time').process_time() < 2)"  # a third of a second, of this process alone
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[] True\n"


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert "(default: 600)" in shown and "None" not in shown
