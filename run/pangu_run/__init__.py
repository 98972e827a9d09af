"""The launch layer: rank tables, launcher, supervisor, doctor, manifests, job directory.

It stands on the standard library, PyYAML, psutil and pangu_ms.core alone, and imports no mindspore, so that a host can
start, watch and diagnose jobs in a fraction of a second. What it has to know of the program that it launches it asks in
a subprocess (program.py). tests/run/test_floors.py has the order of its modules.
"""
