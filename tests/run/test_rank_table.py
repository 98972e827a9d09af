"""Rank tables: numbering by a plan, forms, this machine's server, waiting, merging, the command line."""

import json
import random
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_ms.core.console import guarded
from pangu_ms.core.errors import LaunchError, RankTableError
from pangu_run.cli.ranktable import main
from pangu_run.program import Program
from pangu_run.rank_table import RankTable, check, wait_completed
from pangu_run.rank_table import table as table_module
from pangu_run.rank_table.forms import as_form, made_table, merged
from pangu_run.rank_table.table import misplaced
from tests.faults.rank_tables import dump, group, operator, super_pods, table

HCCN_CONF = """# made by the installer
send_arp_status_0=1
address_0=29.1.0.1
netmask_0=255.255.0.0
gateway_0=29.1.0.254
address_1=29.1.0.2
netmask_1=255.255.0.0
"""
HCCN_TOOL = """#!/bin/sh
[ "$1 $3 $4" = "-i -ip -g" ] || exit 2
[ "$2" -lt 8 ] || { echo "hccn_tool: device $2 is invalid"; exit 1; }
printf 'ipaddr:29.2.0.%s\\nnetmask:255.255.0.0\\n' "$2"
"""


def written(path, value):
    path.write_bytes(dump(value))
    return path


def run(capsys, *words):
    code = guarded("ranktable", lambda: main([str(word) for word in words]))
    return code, *capsys.readouterr()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.sampled_from([1, 2, 4, 8, 16]), st.randoms(use_true_random=False))
def test_made_ordered_split_and_merged(tmp_path_factory, servers, devices, chance):
    path = tmp_path_factory.mktemp("table") / "hccl.json"
    ips = [[f"29.{s}.{d}.1" for d in range(devices)] for s in range(servers)]
    made = made_table([f"host-{s}" for s in range(servers)], list(range(devices)), ips)
    written(path, made.as_dict())
    assert check(path, world=servers * devices) == [] and RankTable.read(path) == made

    places = [(s, d) for s in range(servers) for d in range(devices)]
    chance.shuffle(placement := list(places))
    ordered = made.ordered(placement)
    assert [(int(server.server_id[5:]), device.device_id) for server, device in ordered.ranks().values()] == placement
    assert [device.device_ip for _, device in ordered.ranks().values()] == [ips[s][d] for s, d in placement]
    assert ordered.ordered(places) == made
    written(path, ordered.as_dict())
    assert (
        check(path, placement=placement) == check(path, placement=places) == []
        and misplaced(RankTable.read(path), placement) == []
    )
    assert bool(misplaced(RankTable.read(path), places)) == (placement != places)

    cuts = sorted({0, *(chance.randrange(servers) for _ in range(2)), servers})
    parts = [
        made_table([f"host-{s}" for s in range(a, b)], list(range(devices)), ips[a:b]) for a, b in zip(cuts, cuts[1:])
    ]
    assert merged(parts, [str(i) for i in range(len(parts))]) == made


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["0", "7", "10.0.0.1", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["server_id", "device", "rank_id", "\udfff", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_content_crashes_a_check(tmp_path_factory, data):
    """Any value of a good table replaced by anything, or its file cut anywhere: faults or a table, and a line that can
    be printed."""
    made = data.draw(st.sampled_from([operator(2, 2), super_pods(2, 2, 1), group(2, 2)]))
    place, names = made, []
    while isinstance(place, (dict, list)) and place and (not names or data.draw(st.booleans())):
        holder, name = (
            place,
            data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))),
        )
        names.append(name)
        place = holder[name]
    holder[name] = data.draw(ANY_JSON)
    content = dump(made)[: data.draw(st.sampled_from([None, None, data.draw(st.integers(1, 400))]))]
    path = tmp_path_factory.mktemp("any") / "hccl.json"
    path.write_bytes(content)
    faults = check(path)
    "\n".join(map(str, faults)).encode()
    try:
        table_read = RankTable.read(path)
    except RankTableError as error:
        assert faults and str(error).isprintable()
    else:
        assert not faults
        RankTable.of(table_read.as_dict(), "written")
    try:
        RankTable.read(path, lenient=True)
    except RankTableError as error:
        assert faults and str(error).isprintable()


def test_a_placement_must_fit():
    made = RankTable.of(table(2, 4), "table")
    for placement in (
        [(0, 0)] * 8,
        [(s, d) for s in range(2) for d in range(3)],
        [(s, d) for s in range(4) for d in range(2)],
    ):
        with pytest.raises(RankTableError, match="must fit"):
            made.ordered(placement)


def test_forms_keep_what_they_can():
    modelarts = group(12, 2)
    random.Random(0).shuffle(modelarts["group_list"][0]["instance_list"])
    made = RankTable.of(modelarts, "ModelArts")
    # job-10 comes after job-9, not after job-1
    assert [server.server_id for server in made.servers] == [f"10.0.0.{i + 1}" for i in range(12)]
    listed = made.as_dict()
    assert listed["version"] == "1.0" and listed["server_list"][10]["pod_name"] == "job0123abcd-job-train-10"
    assert as_form(RankTable.of(listed, "1.0"), "group")["group_list"][0]["device_count"] == "24"

    pods = super_pods(4, 2, 2)
    made = RankTable.of(pods, "1.2")
    assert made.as_dict() == pods
    plain = as_form(made, "1.0")
    assert "super_pod_list" not in plain and "super_device_id" not in str(plain) and plain["version"] == "1.0"
    with pytest.raises(RankTableError, match="in no super pod"):
        as_form(RankTable.of(plain, "1.0"), "1.2")
    with pytest.raises(RankTableError, match="group form has no rank ids"):
        as_form(RankTable.of(table(2, 1), "1.0").ordered([(1, 0), (0, 0)]), "group")
    assert RankTable.of(operator(2), "operator").as_dict() == operator(2)


def test_this_server():
    made = RankTable.of(operator(3), "table")  # 10.0.0.N, container_ip 172.16.0.N+1
    assert made.servers[1].addresses == ("10.0.0.1", "172.16.0.2")
    assert [made.this_server(name) for name in ("10.0.0.2", "172.16.0.1")] == [2, 0]
    with pytest.raises(
        RankTableError,
        match="no server is called 10.9.9.9; it has 10.0.0.0, 10.0.0.1, 10.0.0.2; name this machine's with --server-id",
    ):
        made.this_server("10.9.9.9")
    with pytest.raises(RankTableError, match=f"(?s)no server is called {socket.gethostname()} or .*127.0.0.1"):
        made.this_server()
    for name in ("127.0.0.1", socket.gethostname().upper()):
        value = operator(3)
        value["server_list"][2]["server_id"] = name
        assert RankTable.of(value, "table").this_server() == 2
    value["server_list"][0]["host_ip"] = "127.0.0.1"
    with pytest.raises(RankTableError, match="more than one server"):
        RankTable.of(value, "table").this_server()


def test_waiting_for_the_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "POLL_S", 0.02)
    path, said, step = tmp_path / "hccl.json", [], threading.Event()

    def tell(line):
        said.append(line)
        step.set()

    def scheduler():
        whole = dump(operator(2))
        early = operator(2) | {"status": "initializing"}
        early["server_list"] = early["server_list"][:1]
        for content in (
            dump({"status": "initializing", "server_list": None, "server_count": "", "version": "1.0"}),
            dump(early),
            whole[:100],
            whole,
        ):
            assert step.wait(5)
            step.clear()
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(path)  # at once: a reader that is as fast would tell an empty file, too

    thread = threading.Thread(target=scheduler)
    thread.start()
    assert wait_completed(path, 10, tell).world == 16
    thread.join()
    for words, line in zip(
        ("is not there", "entries so far: 0", "entries so far: 1 of 2", "ends in the middle"), said, strict=True
    ):
        assert words in line
    with pytest.raises(RankTableError, match='not completed after 0.1 s: status is "initializing"'):
        wait_completed(written(path, operator(2) | {"status": "initializing"}), 0.1, lambda line: None)
    with pytest.raises(RankTableError, match='status: is "failed"'):
        wait_completed(written(path, operator(2) | {"status": "failed"}), 60, lambda line: None)


def test_merging_finds_what_hosts_share(tmp_path, capsys):
    a, b = made_table(["a"], [0, 1], [["29.0.0.1", "29.0.0.2"]]), made_table(["b"], [0, 1], [["29.0.0.3", "29.0.0.2"]])
    files = [written(tmp_path / name, one.as_dict()) for name, one in (("a.json", a), ("b.json", b))]
    code, _, error = run(capsys, "merge", *files)
    assert (
        code == 2
        and "server_list[1].device[1].device_ip: 29.0.0.2 is also at server_list[0].device[1].device_ip" in error
    )
    code, _, error = run(capsys, "merge", *files, written(tmp_path / "c.json", super_pods(2, 2, 1)))
    assert code == 2 and "forms 1.0, 1.2" in error
    without = [written(tmp_path / f"{host}.json", made_table([host], [0], None).as_dict()) for host in "ab"]
    code, _, error = run(capsys, "merge", *without)
    assert code == 2 and "server_list[1].device[0].device_ip: is missing" in error


def test_making_from_this_hosts_own_words(tmp_path, capsys):
    (tmp_path / "hccn.conf").write_text(HCCN_CONF)
    tool = tmp_path / "hccn_tool"
    tool.write_text(HCCN_TOOL)
    tool.chmod(0o755)
    output = tmp_path / "out" / "hccl.json"
    own = ("make", "--hosts", "node-1", "--hccn-conf", tmp_path / "hccn.conf", "--hccn-tool")
    assert run(capsys, *own, tool, "--devices", "0-3", "--output", output)[0] == 0
    assert [device.device_ip for _, device in RankTable.read(output).ranks().values()] == [
        "29.1.0.1",
        "29.1.0.2",
        "29.2.0.2",
        "29.2.0.3",
    ]
    code, _, error = run(capsys, *own, tmp_path / "none", "--devices", "0,1,9")
    assert code == 2 and "(read)" in error and "no address of device 9" in error
    assert "no address of device 9" in run(capsys, *own, tool, "--devices", "0,9")[2]

    hosts = tmp_path / "hosts"
    hosts.write_text("# two\n10.0.0.1 29.0.0.1,29.0.0.2\n\n10.0.0.2  29.0.1.1 29.0.1.2\n")
    code, printed, _ = run(capsys, "make", "--hosts", hosts, "--devices", 2)
    assert code == 0 and [d["device_ip"] for s in json.loads(printed)["server_list"] for d in s["device"]] == [
        "29.0.0.1",
        "29.0.0.2",
        "29.0.1.1",
        "29.0.1.2",
    ]
    for words, said in (
        (("--hosts", "a,b"), "other hosts' devices are not known here"),
        (("--hosts", "a,b", "--devices", "2", "--device-ips", "1.2.3.4"), "need 4"),
        (("--hosts", hosts, "--devices", "4"), "has 2 addresses"),
        (
            ("--hosts", "a,a", "--devices", "1", "--device-ips", "1.2.3.4,1.2.3.5"),
            "server_list[1].server_id: a is also at",
        ),
        (("--hosts", ","), "no host"),
        (("--hosts", "a", "--devices", "1-2-3"), "must be 1 to 16 devices"),
        (("--hosts", "a", "--devices", "0,1-2-3"), "must be 1 to 16 devices"),  # not device 0 alone
        (("--hosts", "a", "--devices", "0-9999999999"), "must be 1 to 16 devices"),
        (("--hosts", "a", "--devices", "17"), "must be 1 to 16 devices"),
    ):
        code, _, error = run(capsys, "make", *words)
        assert code == 2 and said in error and error.count("\n") == 1, error


def test_command_line(tmp_path, capsys, monkeypatch):
    path = written(tmp_path / "hccl.json", table(2, 4))
    code, printed, _ = run(capsys, "show", path)
    assert (
        code == 0
        and printed.splitlines()[-1].split() == ["7", "10.0.0.1", "3", "192.0.1.4"]
        and "super_pod" not in printed
    )
    shown = json.loads(run(capsys, "show", path, "--json")[1])
    assert shown["world"] == 8 and [row["rank"] for row in shown["ranks"]] == list(range(8))
    assert run(capsys, "check", path)[:2] == (0, f"{path}: form 1.0, 2 servers, 8 ranks, no faults\n")
    code, printed, _ = run(capsys, "check", path, "--world", 16, "--json")
    assert code == 2 and [fault["place"] for fault in json.loads(printed)] == ["rank_id"]

    placement = [(d % 2, d // 2) for d in range(8)]
    described = []
    monkeypatch.setattr(
        "pangu_run.cli.ranktable.program.placement",
        lambda words: described.append(words) or Program(8, "Ascend", placement, 4),
    )
    code, printed, _ = run(capsys, "check", path, "--config", "a.yaml", "parallel.data_parallel=2")
    text = "6 of 8 ranks are not where the plan wants them (the first is 1): `pangu launch` numbers them so by itself"
    assert code == 0 and f"no faults\n  {text}" in printed
    assert (
        run(
            capsys,
            "order",
            path,
            "--config",
            "a.yaml",
            "parallel.data_parallel=2",
            "--output",
            tmp_path / "ordered.json",
        )[0]
        == 0
    )
    assert described == [["--config", "a.yaml", "parallel.data_parallel=2"]] * 2
    assert run(capsys, "check", tmp_path / "ordered.json", "--config", "a.yaml")[1].endswith("no faults\n")

    numbers = json.loads(dump(table(1, 4)).decode().replace('": "0"', '": 0'))
    del numbers["version"], numbers["status"]
    path.write_bytes(b"\xef\xbb\xbf" + dump(numbers))
    code, printed, _ = run(capsys, "check", path)
    assert (
        code == 2 and "byte order mark" in printed and "is the number 0" in printed and "version: is missing" in printed
    )
    new = tmp_path / "new.json"
    assert (
        run(capsys, "convert", path, "--output", new)[0] == 0
        and json.loads(new.read_bytes()) == RankTable.of(table(1, 4), "").as_dict()
    )
    code, _, error = run(capsys, "ordr", path)
    assert code == 2 and "use order" in error


def test_converting_keeps_super_pods(tmp_path, capsys):
    """A table of an A3 cluster whose writer gave numbers: they become strings, and nothing else changes."""
    whole = super_pods(4, 2, 2)
    for server in whole["server_list"]:
        server["host_ip"] = "172.16.0.1"
        for device in server["device"]:
            device |= {"device_port": "16666", "backup_device_ip": "192.168.9.9"}
    numbers = json.loads(dump(whole))
    for server in numbers["server_list"]:
        for device in server["device"]:
            device |= {name: int(device[name]) for name in ("rank_id", "device_id", "super_device_id")}
    code, printed, error = run(capsys, "convert", written(tmp_path / "a3.json", numbers))
    assert (code, error) == (0, "") and json.loads(printed) == whole
    for form in ("1.0", "group"):
        code, printed, error = run(capsys, "convert", tmp_path / "a3.json", "--to", form)
        assert code == 0 and "super_pod" not in printed
        assert (
            error
            == f"pangu ranktable: {tmp_path}/a3.json: form {form} has no super pods, so they are left out; without --to"
            " they are kept\n"
        )


def test_a_plan_orders_a_table(tmp_path, capsys, answering):
    """13B on 64 devices: tensor-parallel groups and the two stages of a replica lie in one server, though ranks of
    stages are 32 apart."""
    path = written(tmp_path / "hccl.json", table(8, 8))
    assert (
        main(["check", str(path), "--config", "alpha/13b_64x32gib"]) == 0
        and "56 of 64 ranks are not where" in capsys.readouterr().out
    )
    assert main(["order", str(path), "--config", "alpha/13b_64x32gib", "--output", str(tmp_path / "ordered.json")]) == 0
    ranks = RankTable.read(tmp_path / "ordered.json").ranks()
    for first in range(0, 32, 4):
        assert len({ranks[stage + first + i][0].server_id for i in range(4) for stage in (0, 32)}) == 1
    assert (
        main(["check", str(tmp_path / "ordered.json"), "--config", "alpha/13b_64x32gib"]) == 0
        and "not where" not in capsys.readouterr().out
    )
    with pytest.raises(LaunchError, match="alpha/13c"):
        main(["check", str(path), "--config", "alpha/13c"])


def test_help_needs_little():
    code = (
        "import sys; from pangu_run.cli.ranktable import main\ntry: main(['check', '--help'])\nexcept SystemExit:"
        " pass\n"
    )
    code += "print([name for name in ('mindspore', 'pangu_ms.config', 'numpy', 'psutil') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "None)" not in done.stdout
