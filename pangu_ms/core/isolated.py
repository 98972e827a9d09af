"""Python processes that import nothing from the working directory, where a user's `json.py` or `run.py` may lie.

    python PATH/isolated.py MODULE ARGUMENTS    as `python -m MODULE ARGUMENTS`, whose first place to look for modules
    is the working directory

`python -P` and PYTHONSAFEPATH do the same from Python 3.11 on, and reach the children of such a process.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this file's directory, before anything is imported

import os
import runpy
from collections.abc import Mapping

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Where this package lies: site-packages, or a checkout, which has the launch layer in `run/`."""
JOB_SECRET = "PANGU_JOB_SECRET"
"""Variable with the secret by which the launchers of one job know each other (see run/pangu_run/job/secret.py). No
other process of a job needs it, so none inherits it."""


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module by this interpreter; start it with `python_environment()`."""
    return [sys.executable, os.path.abspath(__file__), module, *arguments]


def python_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables (by default this process's) under which a Python process and its children leave the working directory
    out; without JOB_SECRET.

    An empty part of PYTHONPATH, as `PYTHONPATH=$PYTHONPATH:DIR` makes one, names the working directory, too.
    """
    found = dict(os.environ if variables is None else variables) | {"PYTHONSAFEPATH": "1"}
    found.pop(JOB_SECRET, None)
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, found["PYTHONPATH"].split(os.pathsep)))
    return found


def main() -> None:
    """Become the module."""
    # A checkout that is not installed has its packages in two directories.
    sys.path += [place for place in (ROOT, os.path.join(ROOT, "run")) if place not in sys.path]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
