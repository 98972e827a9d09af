"""Explains errors of HCCL, CANN, the Ascend runtime and MindSpore in one line each: what they mean and what to do.

ascend_errors.yaml lists the errors, each with its source. An explanation that no public page or header confirms is
shown with "probably".
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANN_CODES = "CANN error code reference"
"""hiascend.com, "Error Code Reference" of the CANN maintenance guide: HCCL, HCCP, RTS and Driver Errors (CANN 8.x)."""
HCCL_RESULTS = "hccl/hccl_types.h"
DATA = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Explanation:
    """The explanation of an error, in one line."""

    code: str
    """EI0006, 507014, HCCL_E_TIMEOUT; a short name if the message has no code."""
    meaning: str
    fix: str
    source: str
    sure: bool = True

    @property
    def line(self) -> str:
        """The line that the user reads."""
        return f"{self.code}: {'' if self.sure else 'probably '}{self.meaning}; {self.fix} [{self.source}]"


RESULTS = (
    ("PARA", "a bad argument"),
    ("PTR", "a null pointer"),
    ("MEMORY", "no memory"),
    ("INTERNAL", "an error inside HCCL"),
    ("NOT_SUPPORT", "not supported on this device"),
    ("NOT_FOUND", "a resource was not found"),
    ("UNAVAIL", "a resource cannot be used"),
    ("SYSCALL", "a system call failed"),
    ("TIMEOUT", "a timeout"),
    ("OPEN_FILE_FAILURE", "a file, mostly the rank table, could not be opened"),
    ("TCP_CONNECT", "no TCP connection"),
    ("ROCE_CONNECT", "no RoCE connection"),
    ("TCP_TRANSFER", "a TCP transfer failed"),
    ("ROCE_TRANSFER", "a RoCE transfer failed"),
    ("RUNTIME", "a call of the Ascend runtime failed"),
    ("DRV", "a call of the driver failed"),
    ("PROFILING", "profiling failed"),
    ("CCE", "a call of CCE failed"),
    ("NETWORK", "a network call failed"),
    ("AGAIN", "try again"),
    ("REMOTE", "another rank failed (error CQE)"),
    ("SUSPENDING", "the communicator is being suspended"),
    ("OPRETRY_FAIL", "repeating a collective failed"),
    ("OOM", "no memory left"),
)
"""Names of HcclResult, starting with value 1."""

MODULES = {
    "1": "GE",
    "2": "FE",
    "3": "AI CPU",
    "4": "TE Fusion",
    "7": "vector operator plugins",
    "8": "vector operators",
    "B": "TBE",
    "C": "auto tune",
    "E": "runtime",
    "F": "LxFusion",
    "G": "AOE",
    "H": "ACL",
    "I": "HCCL",
    "J": "HCCP",
    "K": "profiling",
    "L": "driver",
    "M": "queue scheduling",
    "N": "DVPP",
    "O": "AMCT",
    "P": "dump",
    "Z": "operators",
}
"""CANN's modules by the second character of a code E?NNNN; the numbers 9000 to 9999 are internal errors of the
module."""

CODE_PATTERN = rf"(?<![0-9A-Za-z])(?:E[{''.join(MODULES)}]\d{{4}}|ERR\d{{5}})(?![0-9A-Za-z])"
_CODE = re.compile(CODE_PATTERN)
_NUMBER = re.compile(
    r"(?i:code|err|error|errno|number|ret|return|result|value)(?: is|:|=| ?->)?\W{0,2}([125]0\d{4})(?!\w)"
    r"|(?<!\w)([125]0\d{4}) ?\("
)
"""Six digits are an error code of the runtime only if the text before them says so, since steps and sizes may have six
digits, too."""
_RESULT = re.compile(r"HCCL_E_([A-Z_]+)|hcclRet ?-> ?(\d{1,2})\b")
# HCCL packs its result into the last byte of an errNo: errNo[0x0000000005000009] is result 9.
_ERRNO = re.compile(r"errNo\[0x0*5[0-9a-f]{4}([0-9a-f]{2})\]")


@dataclass(frozen=True)
class Table:
    """The content of ascend_errors.yaml."""

    codes: Mapping[str, Explanation]
    messages: tuple[tuple[re.Pattern[str], Explanation], ...]
    """Explanations of messages without a code, with the patterns that match them; the first match counts."""
    kernel_fix: str
    """Advice for an error inside an operator."""


@functools.cache
def table() -> Table:
    """All known errors; the file is read at the first call."""
    import yaml  # imported here, since not every command that imports this module explains errors

    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    codes = {code: Explanation(code, **entry) for code, entry in data["codes"].items()}
    messages = tuple(_message_entry(entry) for entry in data["messages"])
    return Table(codes, messages, data["fixes"]["kernel"])


def _message_entry(entry: dict[str, Any]) -> tuple[re.Pattern[str], Explanation]:
    return re.compile(entry.pop("pattern")), Explanation(**entry)


def explain(text: str) -> Explanation | None:
    """The explanation of an error message, found by its codes or else by its text; None if it is unknown."""
    known = [table().codes[code] for code in codes_of(text) if code in table().codes]
    return next(iter(known), None) or _message(text) or _result(text) or _internal(text)


def codes_of(text: str) -> tuple[str, ...]:
    """All error codes in a message, those of HCCL and CANN first. Messages with different codes count as different
    errors."""
    numbers = (match[1] or match[2] for match in _NUMBER.finditer(text))
    return tuple(_CODE.findall(text)) + tuple(code for code in numbers if code in table().codes)


def _message(text: str) -> Explanation | None:
    return next((explanation for pattern, explanation in table().messages if pattern.search(text)), None)


def _result(text: str) -> Explanation | None:
    """The HcclResult in a message: as a name, as a number, or inside an errNo of HCCL."""
    for match in _RESULT.finditer(text):
        name = match[1] or _result_name(int(match[2]))
        if name in dict(RESULTS):
            return _result_explanation(name, sure=True)
    if (errno := _ERRNO.search(text)) and (name := _result_name(int(errno[1], 16))):
        return _result_explanation(name, sure=False)
    return None


def _result_explanation(name: str, sure: bool) -> Explanation:
    meaning = f"HCCL: {dict(RESULTS)[name]}"
    return Explanation(f"HCCL_E_{name}", meaning, "see the first error of all ranks", HCCL_RESULTS, sure)


def _result_name(number: int) -> str | None:
    return RESULTS[number - 1][0] if 1 <= number <= len(RESULTS) else None


def _internal(text: str) -> Explanation | None:
    """The explanation of a code that is not in the table: at least the CANN module."""
    for code in _CODE.findall(text):
        if (module := MODULES.get(code[1])) and not code.startswith("ERR"):
            if code[2] == "9":
                return Explanation(code, f"an error inside CANN's module {module}", table().kernel_fix, CANN_CODES)
            meaning = f"a mistake that CANN's module {module} reports"
            return Explanation(code, meaning, "the line says which", CANN_CODES)
    return None
