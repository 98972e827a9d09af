"""What an error of HCCL, CANN, the Ascend runtime or MindSpore means and what to do about it, in one line.

Source of each entry: its last field. What no public page or header confirms has sure=False and is shown with
"probably".
"""

import functools
import re
from dataclasses import dataclass

CANN_CODES = "CANN error code reference"
"""hiascend.com, "Error Code Reference" of the CANN maintenance guide: HCCL, HCCP, RTS and Driver Errors (CANN 8.x)."""
RUNTIME_CODES = "acl/error_codes/rt_error_codes.h"
HCCL_RESULTS = "hccl/hccl_types.h"
CLUSTER = "MindSpore 2.9, libmindspore_cluster.so"
CPU_LIBRARY = "MindSpore 2.9, libmindspore_cpu.so"
MS_BACKEND = "MindSpore 2.9, libmindspore_ms_backend.so"
HARDWARE = "MindSpore 2.9, libmindspore_hardware_abstract.so"
TRAIN_MODEL = "mindspore/train/model.py"
LINUX = "Linux"
TORCH_NPU = "Ascend/pytorch, error codes introduction"


@dataclass(frozen=True)
class Explanation:
    """One line on an error."""

    code: str
    """EI0006, 507014, HCCL_E_TIMEOUT; a short name where the message has no code."""
    meaning: str
    fix: str
    source: str
    sure: bool = True

    @property
    def line(self) -> str:
        """What the user reads."""
        return f"{self.code}: {'' if self.sure else 'probably '}{self.meaning}; {self.fix} [{self.source}]"


_OTHER_RANK = "look at the rank that failed first: this one only waited for it"
_LINK = "check the link: hccn_tool -i DEVICE -link -g and -tls -g"
_TABLE = "check it: pangu ranktable check FILE"
_MEMORY = "lower the batch or recompute more (pangu plan estimate); end other processes on the device (npu-smi info)"
_KERNEL = "the first error in logs/rank_N/ascend names the operator and the address"

CODES = {
    "EI0001": ("an environment variable of HCCL has a bad value", "the line names it; correct or unset it", CANN_CODES),
    "EI0002": (
        "a collective timed out: another rank did not come within HCCL_EXEC_TIMEOUT (1800 s)",
        _OTHER_RANK,
        CANN_CODES,
    ),
    "EI0003": ("a collective was given a bad argument", "compare count, type and group on all ranks", CANN_CODES),
    "EI0004": ("the rank table is invalid", _TABLE, CANN_CODES),
    "EI0005": (
        "ranks entered a collective with different arguments",
        "all ranks need the same configuration, data and code",
        CANN_CODES,
    ),
    "EI0006": (
        "no connection to another rank within HCCL_CONNECT_TIMEOUT (120 s)",
        f"{_OTHER_RANK}; else {_LINK}",
        CANN_CODES,
    ),
    "EI0007": ("HCCL could not allocate a resource", _MEMORY, CANN_CODES),
    "EI0008": (
        "hosts have different versions of HCCL",
        "install the same CANN on all hosts (pangu doctor)",
        CANN_CODES,
    ),
    "EI0009": ("a transport between two ranks could not be set up", f"{_OTHER_RANK}; else {_LINK}", CANN_CODES),
    "EI0010": (
        "peer-to-peer access between two devices of a host failed",
        "check the devices with npu-smi info; or set HCCL_INTRA_ROCE_ENABLE=1",
        CANN_CODES,
    ),
    "EI0011": ("not enough device memory for HCCL", _MEMORY, CANN_CODES),
    "EI0012": ("a copy between devices (SDMA) failed", f"{_OTHER_RANK}; else {_LINK}", CANN_CODES),
    "EI0013": (
        "the network between two devices lost packets (RoCE error CQE), or the peer ended",
        f"{_OTHER_RANK}; else {_LINK}",
        CANN_CODES,
    ),
    "EI0014": ("the rank table is not that of these devices", _TABLE, CANN_CODES),
    "EI0015": (
        "not all ranks came to build the communicator",
        "see which rank is missing; check HCCL_SOCKET_IFNAME and the hosts' network",
        CANN_CODES,
    ),
    "EI0016": ("a setting of HCCL has a bad value", "the line names it", CANN_CODES),
    "EI0017": ("an entry is missing in the rank table", _TABLE, CANN_CODES),
    "EJ0001": (
        "HCCP did not start: the last job still holds the device",
        "end its processes (npu-smi info), wait 10 s, start again",
        CANN_CODES,
    ),
    "EJ0002": ("a network port of a device is down", _LINK, CANN_CODES),
    "EJ0003": (
        "a port is taken on the device",
        "end the processes of the last job, or set another HCCL_IF_BASE_PORT",
        CANN_CODES,
    ),
    "EJ0004": ("the device's IP address is not the one in the rank table", _TABLE, CANN_CODES),
    "EE1001": ("the runtime was called with a bad argument", "see the errors before it", CANN_CODES),
    "EE1002": ("the wait for a stream timed out", _OTHER_RANK, CANN_CODES),
    "EL0001": ("a device is absent or out of order", "npu-smi info; reset or leave out the device", CANN_CODES),
    "EL0002": ("there is no device with that id", "check DEVICE_ID and ASCEND_RT_VISIBLE_DEVICES", CANN_CODES),
    "EL0003": (
        "the driver was called with a bad argument",
        "do driver and CANN fit together? (pangu doctor)",
        CANN_CODES,
    ),
    "EL0004": ("the driver could not allocate memory", _MEMORY, CANN_CODES),
    "EL0005": ("a device is busy", "end its other processes (npu-smi info)", CANN_CODES),
    "EL0006": ("the driver has no resources left", "end other processes on the device (npu-smi info)", CANN_CODES),
    "EL0007": (
        "no permission for the device",
        "add the user to HwHiAiUser; in a container pass /dev/davinciN",
        CANN_CODES,
    ),
    "EL0014": (
        "the driver does not support the operation",
        "do driver, firmware and CANN fit together? (pangu doctor)",
        CANN_CODES,
    ),
    "EL0015": (
        "the process may not use that device",
        "check ASCEND_RT_VISIBLE_DEVICES and the container's devices",
        CANN_CODES,
    ),
    "ERR02200": ("a distributed call of torch_npu failed", "see the HCCL error before it", TORCH_NPU),
    "107001": ("there is no device with that id", "check DEVICE_ID and ASCEND_RT_VISIBLE_DEVICES", RUNTIME_CODES),
    "107002": (
        "a thread used the device without a context",
        "an earlier error closed it: see the first one",
        RUNTIME_CODES,
    ),
    "107003": ("a stream was used outside its context", "an earlier error closed it: see the first one", RUNTIME_CODES),
    "107019": ("a wait timed out", _OTHER_RANK, RUNTIME_CODES),
    "107020": ("a task timed out", _OTHER_RANK, RUNTIME_CODES, False),
    "207000": (
        "this device lacks a feature",
        "do driver, firmware and CANN fit together? (pangu doctor)",
        RUNTIME_CODES,
    ),
    "207001": ("device memory could not be allocated", _MEMORY, RUNTIME_CODES),
    "207003": ("an AI core computed an overflow", "lower the loss scale or the learning rate", RUNTIME_CODES),
    "207004": ("no device", "npu-smi info; in a container pass /dev/davinciN", RUNTIME_CODES),
    "207005": (
        "a resource of the device is used up",
        "end other processes on the device (npu-smi info)",
        RUNTIME_CODES,
    ),
    "207008": ("no streams left", "fewer communication groups or pipeline stages per device", RUNTIME_CODES),
    "507001": ("the device's task scheduler failed", "npu-smi info; reset the device", RUNTIME_CODES),
    "507008": ("the program was built for another SoC", "build operators and MindIR for this device", RUNTIME_CODES),
    "507010": (
        "the device's task scheduler lost its heartbeat",
        "npu-smi info -t health; reset the device",
        RUNTIME_CODES,
    ),
    "507011": ("a graph failed on the device", _KERNEL, RUNTIME_CODES),
    "507012": ("the device did not report in time", "npu-smi info -t health", RUNTIME_CODES),
    "507013": ("a copy between devices failed", f"{_OTHER_RANK}; else {_LINK}", RUNTIME_CODES),
    "507014": ("an operator ran too long on an AI core", _KERNEL, RUNTIME_CODES),
    "507015": ("an operator failed on an AI core", _KERNEL, RUNTIME_CODES),
    "507017": (
        "an operator ran too long on the AI CPU; often data came too slowly",
        "check the data pipeline and the host's load",
        RUNTIME_CODES,
    ),
    "507018": ("an operator failed on the AI CPU", _KERNEL, RUNTIME_CODES),
    "507033": (
        "the device could not be set up",
        "npu-smi info; end processes of the last job; reset the device",
        RUNTIME_CODES,
    ),
    "507034": ("an operator ran too long on a vector core", _KERNEL, RUNTIME_CODES),
    "507035": ("an operator failed on a vector core, mostly an address out of range", _KERNEL, RUNTIME_CODES),
    "507053": (
        "device memory has an error (UCE)",
        "take the device out and have it checked: npu-smi info -t ecc",
        RUNTIME_CODES,
        False,
    ),
    "507054": (
        "device memory has a multi-bit error (HBM ECC)",
        "take the device out and have it checked: npu-smi info -t ecc",
        TRAIN_MODEL,
    ),
    "507899": ("the driver failed inside", "dmesg and npu-smi info -t health", RUNTIME_CODES),
    "507901": ("the connection to the device was cut", "npu-smi info -t health; reset the device", RUNTIME_CODES),
}

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
"""HcclResult from 1 on."""

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
"""Second character of a code E?NNNN; 9000 to 9999 are errors inside the module."""

MESSAGES = (
    (
        r"Topology build timed out|not successfully spawned",
        "cluster start",
        "not all ranks came to MindSpore's scheduler in time (MS_TOPO_TIMEOUT)",
        "see which rank has no log or an error of its own",
        CLUSTER,
    ),
    (
        r"MS_SCHED_PORT is occupied|another scheduler process with port",
        "scheduler port",
        "another process has the scheduler's port",
        "end the last job's scheduler, or launch with another --master-port",
        CLUSTER,
    ),
    (
        r"Failed to connect to the meta server|Failed to register the tcp node|(?i:connect to (?:the )?scheduler)",
        "scheduler connection",
        "MindSpore's scheduler ended or cannot be reached",
        "see logs/scheduler; check MS_SCHED_HOST, the port and the firewall",
        CLUSTER,
    ),
    (
        r"MS_SCHED_HOST or MS_SCHED_PORT is not consistent",
        "scheduler address",
        "ranks and scheduler have different addresses",
        "unset MS_SCHED_HOST and MS_SCHED_PORT: the launcher sets them",
        CLUSTER,
    ),
    (
        r"is timed out\. It may exit with exception|total number of timed out node",
        "rank lost",
        "the scheduler hears nothing of a rank",
        "look at that rank's log: it ended or hangs",
        CLUSTER,
    ),
    (
        r"(?:Ring \w+|RingAllReduce|Reduce|Broadcast|Gather) wait (?:sending|receiving)|CollectiveWait",
        "CPU collective",
        "another rank did not come to a collective within 30 s",
        _OTHER_RANK,
        CLUSTER,
    ),
    (
        r"MS_RECEIVE_MSG_TIMEOUT",
        "message timeout",
        "a process of the cluster did not answer in time",
        _OTHER_RANK,
        CLUSTER,
    ),
    (
        r"[Rr]ank ?table file is incorrect|Failed to (?:open|read data from) rank table file",
        "rank table",
        "the rank table cannot be read",
        _TABLE,
        CLUSTER,
    ),
    (
        r"unique id of the collective lib|SendUniqueID before timeout",
        "communicator start",
        "the first rank of a group did not open it in time (MS_NODE_TIMEOUT)",
        "look at the first rank of that group",
        CPU_LIBRARY,
    ),
    (
        r"Unsupported op \[|Kernel select failed",
        "no kernel",
        "the device has no kernel for an operator or its type",
        "change compute_dtype, or the operator",
        CPU_LIBRARY,
    ),
    (
        r"Memory not enough|[Mm]emory isn't enough|aclrtMalloc\w* failed",
        "device memory",
        "device memory is used up",
        _MEMORY,
        MS_BACKEND,
    ),
    (
        r"Total size of the communicator",
        "communicator memory",
        "buffers of the communicators do not fit",
        "lower HCCL_BUFFSIZE, or use fewer groups",
        HARDWARE,
        False,
    ),
    (
        r"Root info pointer is nullptr",
        "communicator port",
        "a port of HCCL is taken",
        "end residual processes (npu-smi info), or set HCCL_IF_BASE_PORT",
        HARDWARE,
    ),
    (
        r"Getnext gets peek data time out",
        "data queue",
        "the data pipeline is too slow",
        "check the host's load and the records' disk",
        HARDWARE,
    ),
    (
        r"topo exchange server get socket timeout|Failed to connect agent",
        "missing ranks",
        CODES["EI0015"][0],
        CODES["EI0015"][1],
        CANN_CODES,
    ),
    (r"wait socket establish timeout", "no connection", CODES["EI0006"][0], CODES["EI0006"][1], CANN_CODES),
    (r"(?i:error cqe)", "RoCE error", CODES["EI0013"][0], CODES["EI0013"][1], CANN_CODES),
    (
        r"UCEError",
        "device memory fault",
        "device memory has an error that cannot be corrected",
        "take the device out: npu-smi info -t ecc",
        TRAIN_MODEL,
    ),
    (
        r"HCCEError|SuspectRemoteError",
        "network fault",
        "a collective failed because of the network or another rank",
        f"{_OTHER_RANK}; else {_LINK}",
        TRAIN_MODEL,
    ),
    (r"ForceStopError", "stopped", "the device's tasks were stopped from outside", _OTHER_RANK, TRAIN_MODEL),
    (r"No space left on device|ENOSPC", "disk full", "no room", "free some, or name an --output with room", LINUX),
    (r"Too many open files", "open files", "the process may not open more files", "raise ulimit -n", LINUX),
    (
        r"Cannot allocate memory|std::bad_alloc|^MemoryError",
        "host memory",
        "the host's memory is used up",
        "fewer ranks or data workers on the host",
        LINUX,
    ),
    (
        r"lib(?:ascendcl|hccl|ge_\w+|runtime)\.so\S*: cannot open shared object",
        "CANN missing",
        "CANN is not installed or not on the path",
        "source .../ascend-toolkit/set_env.sh",
        LINUX,
    ),
    (
        r"Address already in use",
        "port taken",
        "another process has the port",
        "end the last job, or name another --master-port",
        LINUX,
    ),
    (
        r"^Killed$|SIGKILL",
        "killed",
        "the process was killed from outside, mostly for want of host memory",
        "dmesg | grep -i oom",
        LINUX,
        False,
    ),
)

CODE_PATTERN = rf"(?<![0-9A-Za-z])(?:E[{''.join(MODULES)}]\d{{4}}|ERR\d{{5}})(?![0-9A-Za-z])"
_CODE = re.compile(CODE_PATTERN)
_NUMBER = re.compile(
    r"(?i:code|err|error|errno|number|ret|return|result|value)(?: is|:|=|"
    r" ?->)?\W{0,2}([125]0\d{4})(?!\w)|(?<!\w)([125]0\d{4}) ?\("
)
"""Six digits are a code of the runtime where the words before them say so; steps and sizes have six digits, too."""
_RESULT = re.compile(r"HCCL_E_([A-Z_]+)|hcclRet ?-> ?(\d{1,2})\b")
_ERRNO = re.compile(r"errNo\[0x0*5[0-9a-f]{4}([0-9a-f]{2})\]")


def explain(text: str) -> Explanation | None:
    """What is known of an error message: its most telling part."""
    codes = [_entry(code) for code in codes_of(text) if code in CODES]
    return next(iter(codes), None) or _message(text) or _result(text) or _internal(text)


def codes_of(text: str) -> tuple[str, ...]:
    """All codes in a message, those of HCCL and CANN first; two messages with different codes are different errors."""
    numbers = (found[1] or found[2] for found in _NUMBER.finditer(text))
    return tuple(_CODE.findall(text)) + tuple(code for code in numbers if code in CODES)


def _entry(code: str) -> Explanation:
    return Explanation(code, *CODES[code])


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern, Explanation], ...]:
    return tuple((re.compile(pattern), Explanation(*rest)) for pattern, *rest in MESSAGES)


def _message(text: str) -> Explanation | None:
    return next((explanation for pattern, explanation in _patterns() if pattern.search(text)), None)


def _result(text: str) -> Explanation | None:
    for found in _RESULT.finditer(text):
        names = {name: meaning for name, meaning in RESULTS}
        name = found[1] or _result_name(int(found[2]))
        if name in names:
            return Explanation(
                f"HCCL_E_{name}", f"HCCL: {names[name]}", "see the first error of all ranks", HCCL_RESULTS
            )
    if (found := _ERRNO.search(text)) and (name := _result_name(int(found[1], 16))):
        return Explanation(
            f"HCCL_E_{name}",
            f"HCCL: {dict(RESULTS)[name]}",
            "see the first error of all ranks",
            HCCL_RESULTS,
            sure=False,
        )
    return None


def _result_name(number: int) -> str | None:
    return RESULTS[number - 1][0] if 1 <= number <= len(RESULTS) else None


def _internal(text: str) -> Explanation | None:
    """A code that has no entry: its module at least."""
    for code in _CODE.findall(text):
        if (module := MODULES.get(code[1])) and not code.startswith("ERR"):
            inner = code[2] == "9"
            meaning = (
                f"an error inside CANN's module {module}" if inner else f"a mistake that CANN's module {module} reports"
            )
            return Explanation(code, meaning, _KERNEL if inner else "the line says which", CANN_CODES)
    return None
