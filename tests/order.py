"""The order in which workers of pytest-xdist take files: the longest first, so that all workers end together.

By itself, `--dist loadfile` begins with the files that have the most tests. A file with few tests that train for a
minute would come last, and the other workers would wait for it.
"""

from collections import Counter
from pathlib import Path

import pytest

LONGEST = (
    "train/test_data_parallel.py",
    "families/test_families.py",
    "rehearsal/test_execute.py",
    "train/test_offload.py",
    "faults/test_table.py",
    "ascend_ops/test_packed.py",
    "train/test_resume.py",
    "ascend_ops/test_optimizer.py",
    "ascend_ops/test_matmul.py",
    "ascend_ops/test_attention.py",
    "export/test_package.py",
    "mutants/test_mutants.py",
    "ascend_ops/test_routing.py",
    "infer/test_engine.py",
    "parallel/test_apply.py",
    "train/test_types.py",
    "rehearsal/test_rehearse.py",
    "models/test_pi.py",
    "faults/test_strangers.py",
    "faults/test_hosts.py",
    "models/test_frozen.py",
    "train/test_step.py",
    "ascend_ops/test_library.py",
    "data/test_prepare.py",
    "test_quickstart.py",
    "test_examples.py",
    "models/test_moge.py",
    "infer/test_quantized.py",
    "infer/test_domains.py",
    "serve/test_page.py",
    "run/test_isolated.py",
    "test_compile_cache.py",
    "test_ascend_host_side.py",
    "mindformers/test_trainer.py",
)
"""Files of tests/ that take a worker 9 s and more, as `pytest -p tests.cpu_seconds` measures. The order among them
matters little."""

TESTS = Path(__file__).parent


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by file: LONGEST, then those with the most tests. The tests of a file stay in their order."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (places.get(item.path, len(LONGEST)), -sizes[item.path], item.path))
