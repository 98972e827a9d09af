"""The Dockerfile: rules that matter, and values that survive Docker's replacements."""

import json
import re
import subprocess

import pytest

from pangu_run.manifest.plan import Plan
from pangu_run.manifest.text import docker_literal, docker_value
from tests.run.manifest.schemas import instructions
from tests.run.manifest.tools import LAUNCH, NASTY, WORDS, written


@pytest.mark.parametrize("on_ascend,base", [(True, "quay.io/ascend/cann:"), (False, "python:3.11-slim")])
def test_dockerfile_keeps_the_rules_and_starts_the_run(capsys, plan, on_ascend, base):
    plan.value = Plan(1, 8, on_ascend)
    steps = instructions(written(capsys, "docker", *WORDS))
    known = {"ARG", "FROM", "USER", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known
    assert steps[0][1].startswith(f'BASE="{base}') and steps[1] == ("FROM", "${BASE}")
    assert [rest for name, rest in steps if name == "USER"][-1] == "${UID}:${GID}"
    arguments = dict(rest.split("=", 1) for name, rest in steps if name == "ARG")
    assert arguments["UID"] != "0"
    system, packages = [rest for name, rest in steps if name == "RUN"]
    assert "--no-install-recommends" in system and "rm -rf /var/lib/apt/lists/*" in system and " tini" in system
    assert re.search(r"--no-cache-dir .*pangu_ms-[\d.]+-py3-none-any\.whl.*mindspore==.*mindformers==", packages)
    assert dict(steps)["ENTRYPOINT"] == '["/usr/bin/tini", "--", "pangu"]' and json.loads(dict(steps)["CMD"]) == [
        "launch",
        *LAUNCH,
    ]
    for script in (system, packages):
        assert subprocess.run(["bash", "-n", "-c", script], capture_output=True).returncode == 0


def test_dockerfile_says_how_to_run_it(capsys, plan):
    def comment(hosts, on_ascend):
        plan.value = Plan(hosts, 2, on_ascend)
        (line,) = [line for line in written(capsys, "docker", *WORDS[:3]).splitlines() if line.startswith("# Run:")]
        return line

    assert (
        "--device /dev/davinci1 " in comment(1, True)
        and "davinci2" not in comment(1, True)
        and "--stop-timeout 300" in comment(1, True)
    )
    assert "davinci" not in comment(1, False) and "docker run" not in comment(3, True)


def replaced(text, variables):
    """Docker's replacement of variables in COPY, ENV and ARG: $NAME and ${NAME}, a backslash takes a character as it
    is."""
    return re.sub(r"\\(.)|\$\{?(\w+)\}?", lambda match: match[1] or variables.get(match[2], ""), text)


def test_dockerfile_values_survive_docker(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a $HOME \\b.yaml"
    (tmp_path / name).write_text("base: alpha/tiny\n")
    steps = instructions(written(capsys, "docker", "--config", name, "--env", f"K={NASTY}"))
    ((_, copy),) = [step for step in steps if step[0] == "COPY" and "yaml" in step[1]]
    source, target = json.loads(copy)
    assert replaced(source, {"HOME": "/wrong"}) == name and target in json.loads(dict(steps)["CMD"])
    ((_, value),) = [step for step in steps if step[0] == "ENV" and step[1].startswith("K=")]
    assert value == "K=" + docker_value(NASTY) and replaced(value[3:-1], {"HOME": "/wrong"}) == NASTY
    assert replaced(docker_literal(NASTY), {"HOME": "/wrong"}) == NASTY
