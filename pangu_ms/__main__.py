"""`python -m pangu_ms` is `pangu`."""

from pangu_ms.cli.main import entry

entry()
