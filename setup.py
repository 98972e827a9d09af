"""Package metadata; `pip install -e .` gives the `pangu` command."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "pangu_ms/__init__.py").read_text()).group(1)

SERVE = [
    "fastapi>=0.115",
    "uvicorn>=0.30",
    "jinja2>=3.1",  # templates of chats
    "llguidance>=1.0,<2",  # continuations of a given form
    "prometheus-client>=0.20",
]

EVAL = [
    "lm-eval>=0.4.13,<0.5",  # pangu harness; it needs no torch from 0.4.10 on
    "httpx",  # models behind a URL
]

setup(
    name="pangu-ms",
    version=VERSION,
    description="Train, evaluate and export the PanGu language models on MindSpore",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10,<3.13",
    # The presets in configs/ install as data of the package: a top-level `configs` package would collide with
    # MindFormers' own.
    packages=[
        *find_packages(include=["pangu_ms", "pangu_ms.*", "ascend_ops"]),
        # `pangu_run`: a package named `run` would be shadowed by any run.py in the working directory.
        *find_packages("run"),
        "pangu_ms.configs",
    ],
    package_dir={"": ".", "pangu_run": "run/pangu_run", "pangu_ms.configs": "configs"},
    package_data={
        "pangu_ms.configs": ["*/*.yaml"],
        "pangu_ms.eval.tasks": ["definitions/*.yaml"],
        "pangu_ms.mindformers": ["*.yaml"],
        "pangu_ms.serve": ["page/*", "templates/*"],
        "pangu_run": ["manifest/templates/*", "report/*.yaml"],
        "ascend_ops": ["cpu/**", "ascendc/**"],
    },
    exclude_package_data={"ascend_ops": ["ascendc/opp/**"]},  # where build.sh installs what it built
    install_requires=[
        "mindspore>=2.7.2,<2.10,!=2.8.*",
        "mindformers>=1.8,<2",
        "safetensors>=0.4.5,<0.8",  # 0.8.0 writes wrong values for non-contiguous arrays
        "numpy",
        "sentencepiece>=0.2",
        "tokenizers>=0.19",  # tokenizer.json of Hugging Face directories; encode_special_tokens
        "jieba",
        "pydantic>=2.7,<3",
        "pyyaml",
        "tqdm",
        "psutil",
    ],
    extras_require={
        "completion": ["shtab"],  # pangu completion SHELL
        "data": ["zstandard"],
        "tensorboard": ["tensorboardX"],
        "sign": ["cryptography"],  # export --sign-key, run-mindir --verify-key
        "serve": SERVE,  # pangu serve
        "eval": EVAL,  # pangu harness; pangu tasks run http://...
        "plot": ["matplotlib>=3.10"],  # older ones leave labels that begin with _ out of the legend
        "hf": ["torch", "transformers"],  # tests that make Hugging Face checkpoints and compare logits
        "gguf": ["gguf>=0.10"],  # pangu convert --to gguf
        "bench": ["torch", "gguf"],  # peers of the benchmarks (torch: any CPU build) and files for them
        "fuzz": ["schemathesis"],  # a test of the slow tier, over the OpenAPI document of `pangu serve`
        "docs": ["mkdocs-material", "pre-commit"],  # the site of docs/, and the hooks of those who change the code
        "test": [
            "setuptools>=70.1",
            "pytest",
            "pytest-xdist",
            "pytest-timeout",
            "hypothesis",
            "ruff>=0.16,<0.18",  # a newer one may format otherwise
            "mypy>=1.18,<3",
            "types-PyYAML",
            "types-psutil",
            "zstandard",
            "tensorboardX",
            "matplotlib>=3.10",
            "cryptography",
            "shtab",
            "gguf",
            *SERVE,
            *EVAL,
            "openai",
            "playwright",  # drives Debian's chromium; without a browser its tests are skipped
        ],
    },
    entry_points={"console_scripts": ["pangu=pangu_ms.cli.main:entry"]},
)
