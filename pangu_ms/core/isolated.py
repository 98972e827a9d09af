"""Start Python processes that import nothing from the working directory, where a user's `json.py` or `run.py` may lie.

    python PATH/isolated.py MODULE ARGUMENTS

runs a module as `python -m MODULE ARGUMENTS` does, except that `python -m` searches the working directory first. From
Python 3.11 on `python -P` and PYTHONSAFEPATH have the same effect, PYTHONSAFEPATH also on child processes.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this file's directory, before anything is imported

import os
import runpy
from collections.abc import Mapping

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory of the package pangu_ms: site-packages, or a checkout, which has the launch layer in `run/`."""
JOB_SECRET = "PANGU_JOB_SECRET"
"""Environment variable with the secret by which the launchers of one job recognise each other (see
run/pangu_run/job/secret.py). No other process of a job needs it, so none inherits it."""


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module by this interpreter; start it with `python_environment()`."""
    return [sys.executable, os.path.abspath(__file__), module, *arguments]


def python_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for a Python process that must not import from the working directory, and neither must its
    children.

    Args:
        variables: the environment to start from; default: this process's.

    Returns:
        the variables, without JOB_SECRET, and without empty parts of PYTHONPATH: such a part, which
        `PYTHONPATH=$PYTHONPATH:DIR` may create, means the working directory.
    """
    found = dict(os.environ if variables is None else variables) | {"PYTHONSAFEPATH": "1"}
    found.pop(JOB_SECRET, None)
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, found["PYTHONPATH"].split(os.pathsep)))
    return found


def main() -> None:
    """Run the module in this process."""
    # A checkout that is not installed has its packages in two directories.
    sys.path += [path for path in (ROOT, os.path.join(ROOT, "run")) if path not in sys.path]
    del sys.argv[0]  # this file; runpy puts the module's file in the place of its name
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
