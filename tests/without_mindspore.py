"""Commands in one process that cannot import MindSpore: what they tell is told before it would be."""

import json
import subprocess
import sys

IMPORTED = "MindSpore is imported"
PROGRAM = f"""
import contextlib, io, json, sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mindspore":
            raise AssertionError("{IMPORTED}")

sys.meta_path.insert(0, Blocked())
from pangu_ms.cli.main import main
answers = []
for words in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = traceback.format_exc()
    answers.append([code, error.getvalue()])
json.dump(answers, sys.stdout)
"""


def answers_to(commands, cwd=None):
    """[exit code or traceback, stderr] of each command, a list of words."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
