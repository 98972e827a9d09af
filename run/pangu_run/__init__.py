"""The launch layer: rank tables, launcher, supervisor, doctor, manifests, job directory. Standard library, PyYAML and
psutil alone.

The lowest layer of the project: it imports nothing of `pangu_ms` and no mindspore, so that a host without either can
start, watch and diagnose jobs.
"""
