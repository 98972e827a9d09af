"""The doctor on a made-up server: nothing to say of a healthy one, and for each fault its line."""

import json
import re
import resource
import socket
import time

import psutil
import pytest

from pangu_ms.core.errors import LaunchError
from pangu_run.cli import doctor as cli
from pangu_run.doctor import check, npu, versions
from pangu_run.doctor.check import OK, WARN, fail, ok, run_check
from pangu_run.doctor.site import Site, numbers, spans
from tests.run.doctor_cases import CASES, alone, describe, holding
from tests.run.doctor_host import CANN, Host, recorded


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def found(host, kind=None):
    host_site = host.site()
    kinds = {kind: cli.KINDS[kind]} if kind else cli.KINDS
    return [line for checks in kinds.values() for one in checks for line in run_check(one, host_site)]


def faults(host, kind=None):
    return [line for line in found(host, kind) if line.level != OK]


def cpu(host):
    """A laptop: nothing of Ascend's, no table."""
    alone(host)
    for name in ("npu-smi", "hccn_tool"):
        host.no_tool(name)
    for path in (
        "/usr/local/Ascend/driver/version.info",
        "/usr/local/Ascend/firmware/version.info",
        f"{CANN}/aarch64-linux/ascend_toolkit_install.info",
    ):
        host.remove(path)
    (host.root / CANN[1:] / "aarch64-linux").rmdir()
    (host.root / CANN[1:]).rmdir()


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in CASES.items() for case in cases])
def test_each_fault_has_its_line(host, kind, case):
    change, expected, words = CASES[kind][case]
    level, _, what = expected.partition(" ")
    change(host)
    lines = faults(host, kind)
    assert any(line.level == level and line.what.startswith(what) and words in line.found for line in lines), lines
    assert all(line.fix and "\n" not in line.found for line in lines)


def test_a_healthy_server_has_no_fault(host):
    describe('a warning first\n{"world": 16, "device": "Ascend", "placement": [], "devices_per_server": 8}')(host)
    host.environment |= {"HCCL_IF_IP": "10.0.0.1", "HCCL_SOCKET_IFNAME": "^lo", "HCCL_CONNECT_TIMEOUT": "600"}
    host.environment |= {"https_proxy": "http://proxy", "no_proxy": "10.0.0.0/24"}
    assert faults(host) == []


def test_a_laptop_has_no_fault(host):
    cpu(host)
    host.limits = {
        resource.RLIMIT_MEMLOCK: (65536, 65536),
        resource.RLIMIT_NOFILE: (1024, 4096),
    }  # what matters to devices alone is not asked for
    host.no_tool("chronyc")
    lines = found(host)
    assert [line for line in lines if line.level != OK] == []
    assert any("no NPU here" in line.found for line in lines)


def test_ascend_is_wanted_where_none_is(host):
    cpu(host)
    host.options["wanted_device"] = "ascend"
    assert {line.what for line in faults(host) if line.level == "FAIL"} == {"devices", "CANN", "driver"}


def test_each_chip_of_a_card_of_two_is_a_device():
    text = recorded("npu_smi_info_910_93")
    assert [(d.device_id, d.npu) for d in npu.devices(text)] == [(i, i // 2) for i in range(16)]
    assert {d.total_mib for d in npu.devices(text)} == {65536} and npu.devices(text)[3].used_mib == 3103


def test_cann_has_its_version_in_version_cfg_too(host):
    host.remove(f"{CANN}/aarch64-linux/ascend_toolkit_install.info")
    host.write(f"{CANN}/version.cfg", recorded("toolkit_version_cfg"))
    assert versions.cann_version(host.site()) == "8.0.0"


def test_hosts_learn_of_each_other_by_the_directory(host, tmp_path):
    """Host b runs its doctor after host a, with a clock 40 s behind: both then say so, and each that all have
    written."""
    (host.options["output"] / "job/doctor/host-b.json").unlink()
    assert any("no word of 10.0.0.2" in line.found for line in faults(host, "hosts"))
    real = time.time
    host.interfaces("10.0.0.2")
    host.patch(socket, "gethostname", lambda: "host-b")
    host.patch(time, "time", lambda: real() - 40)
    words = [f"{line.what}: {line.found}" for line in found(host, "hosts")]
    assert words == [
        "shared directory: all 2 servers have written to it",
        "host host-a: 40.0 s behind the clock of host-a",
    ]
    host.interfaces("10.0.0.1")
    host.patch(socket, "gethostname", lambda: "host-a")
    host.patch(time, "time", real)
    assert any(
        line.level == WARN and line.found == "40.0 s ahead of the clock of host-b" for line in found(host, "hosts")
    )


def test_only_the_first_server_needs_the_port(host):
    holding(host, 0)
    host.interfaces("10.0.0.2")
    assert not any(line.what.startswith("port") for line in found(host, "network"))


def test_nothing_is_left_in_the_output_but_this_hosts_word(host):
    found(host)
    assert sorted(path.name for path in host.options["output"].rglob("*") if path.is_file()) == [
        "host-a.json",
        "host-b.json",
    ]


def test_what_a_check_raises_or_waits_for_is_a_line(host, monkeypatch):
    def breaks(site):
        yield ok("first", "seen")
        raise PermissionError(13, "Permission denied")

    def hangs(site):
        yield fail("disk", "slow", "wait")
        time.sleep(5)

    monkeypatch.setattr(check, "CHECK_S", 0.2)
    assert [(line.level, line.what) for line in run_check(breaks, Site())] == [("OK", "first"), ("WARN", "breaks")]
    assert [(line.level, line.what) for line in run_check(hangs, Site())] == [("FAIL", "disk"), ("FAIL", "hangs")]


def test_a_tool_that_hangs_leaves_no_process(host):
    host.answer("npu-smi info", "", "hang")
    begin = time.monotonic()
    assert "gave no answer in 0.2 s" in host.site().tool("npu-smi", "info", timeout_s=0.2).problem
    assert time.monotonic() - begin < 3
    child = int((host.answers / "npu-smi info.pid").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - begin < 10
        time.sleep(0.02)  # SIGKILL takes its time on a busy machine


def test_spans_and_numbers():
    assert (
        spans([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8" and numbers("0-2,5,7-8") == {0, 1, 2, 5, 7, 8} and numbers("") == set()
    )


def run_cli(host, capsys, monkeypatch, *words):
    monkeypatch.setattr(cli, "Site", lambda **options: Site(environment=host.environment, root=host.root, **options))
    code = cli.main(
        [
            "--rank-table",
            str(host.table),
            "--output",
            str(host.options["output"]),
            "--master-port",
            str(host.options["master_port"]),
            *words,
        ]
    )
    return code, capsys.readouterr().out


def test_command_line(host, capsys, monkeypatch):
    assert run_cli(host, capsys, monkeypatch)[0] == 0
    host.swap("hccn_tool -i 5 -link -g", "UP", "DOWN")
    code, out = run_cli(host, capsys, monkeypatch)
    assert code == 1 and "\033" not in out and out.splitlines()[-1].endswith(", 0 WARN, 1 FAIL")
    at = next(i for i, line in enumerate(out.splitlines()) if "DOWN: 5" in line)
    assert out.splitlines()[at].startswith("  FAIL  device links (RoCE)") and out.splitlines()[
        at + 1
    ].lstrip().startswith("-> ")
    assert "\033[31mFAIL\033[0m" in cli.pretty("devices", [fail("links", "down", "mend")], colour=True)
    code, out = run_cli(host, capsys, monkeypatch, "--json")
    report = json.loads(out)
    assert code == 1 and report["host"] == "host-a" and report["counts"]["FAIL"] == 1
    assert [line for line in report["lines"] if line["level"] == "FAIL"][0]["kind"] == "devices"


def test_a_bad_rank_table_is_a_line_and_the_rest_is_looked_at(host, capsys, monkeypatch):
    host.table.write_text('{"version": "1.0"')
    code, out = run_cli(host, capsys, monkeypatch)
    assert code == 1 and f"pangu ranktable check {host.table}" in out and "write speed" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hosts", ","], "--hosts ',': has an empty name"),
        (["--hosts", "a,a"], "--hosts a,a: has a twice"),
        (["--rank-table", "x", "--hosts", "a"], "--hosts: the rank table names the hosts"),
        (["--master-port", "65535"], "--master-port 65535: must be from 1024 to 65534"),
    ],
)
def test_wrong_options(words, says):
    with pytest.raises(LaunchError, match=re.escape(says)):
        cli.main(words)


def test_overrides_need_a_configuration(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train.steps=1"])
    assert stop.value.code == 2 and "train.steps=1: overrides need a --config" in capsys.readouterr().err


def test_a_healthy_job_without_a_table(host, capsys, monkeypatch):
    """The words of `pangu launch --hosts`: nothing to say, on the first host and with another address of it."""
    host.names({"host-a": "10.0.0.1", "host-b": "10.0.0.2"})
    host.table = None
    monkeypatch.setattr(cli, "Site", lambda **options: Site(environment=host.environment, root=host.root, **options))
    for first, address in (((), "10.0.0.1"), (("--master-address", "10.0.7.1"), "10.0.7.1")):
        words = [
            "--hosts",
            "host-a,host-b",
            "--output",
            str(host.options["output"]),
            "--master-port",
            str(host.options["master_port"]),
            *first,
        ]
        code = cli.main(words)
        out = capsys.readouterr().out
        assert code == 0 and ", 0 WARN, 0 FAIL" in out and "2 servers; this is server 0, host-a" in out
        assert f"its address is {address}; it was not spoken to" in out and "reached" not in out


def test_help_is_quick_and_tells_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert "(default: 8118)" in out and "default: None" not in out and "1 with any FAIL" in out
