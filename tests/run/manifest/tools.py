"""Words that are hard to quote, and how a manifest is made and executed."""

import json
import os
import subprocess
import time

from pangu_run.cli.manifest import KINDS, main

OF_RUNS = [kind for kind in KINDS if kind != "serve"]
"""Kinds of manifests of runs, which have options in common."""
NASTY = "a b'c\"d$HOME$(PATH)$$x`id`\\n;#&*"
TRAIN = [
    "--config",
    "alpha/13b",
    "parallel.num_devices=16",
    "--output",
    f"/out/{NASTY}",
    "--data",
    "/out/data",
    "--resume",
]
LAUNCH = ["--max-restarts", "3", "--stop-timeout", "270", "--master-port", "8118", "train", *TRAIN]
WORDS = [*TRAIN[:3], "--output-dir", TRAIN[4], "--data", "/out/data"]
MOUNT = ["--mount", "/shared:/out"]


def written(capsys, kind, *words):
    assert main([kind, *words]) == 0
    return capsys.readouterr().out


def execute(tools, command, stop=None, starters=1, **variables):
    heard = tools / "heard"
    heard.write_text("")
    environment = os.environ | {"PATH": f"{tools}/bin:{os.environ['PATH']}", "HEARD": str(heard)} | variables
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tools
    )
    if stop:
        deadline = time.monotonic() + 10
        while heard.read_text().count('"launch"') < starters and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
    process.out, process.err = process.communicate(timeout=15)
    return process, [json.loads(line) for line in heard.read_text().splitlines()]


def calls(heard):
    return [event["words"] for event in heard if "words" in event]


def signals(heard):
    return [event["signal"] for event in heard if "signal" in event]
