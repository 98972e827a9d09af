"""`python -m tests.frozen_child MODULE ARGUMENTS`: a module as a program, with the weights of tests/frozen.py."""

import runpy
import sys

from tests.frozen import frozen

del sys.argv[0]
with frozen():
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
