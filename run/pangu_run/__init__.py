"""The launch layer: rank tables, launcher, supervisor, doctor, manifests, job directory.

It depends only on the standard library, PyYAML, psutil and pangu_ms.core, and does not import mindspore, so that a host
can start, watch and diagnose jobs in a fraction of a second. program.py asks the program to be launched, in a
subprocess, what the launcher needs to know of it. tests/run/test_floors.py lists the modules from the lowest layer to
the highest.
"""
