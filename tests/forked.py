"""Python programs in processes of their own that need not import anything: one process imports it and forks for each.

Importing MindSpore takes 1.8 CPU seconds, a fork of a process that has imported it none. Nothing is computed before
the fork: MindSpore starts its threads, its device and its cache in the fork, as in a process of its own.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import json, os, runpy, sys, traceback
exec(sys.argv[1])
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code = 1
    try:
        for number, name in enumerate(("input", "output", "errors")):
            os.dup2(os.open(*((os.devnull, os.O_RDONLY) if name == "input" else (job[name], os.O_WRONLY))), number)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        words = job["words"]
        sys.argv = words[1:] if words[0] == "-m" else ["-c", *words[2:]] if words[0] == "-c" else words
        for module in list(sys.modules.values()):  # MindSpore looks for the program when it is imported
            if "entry_script_path" in getattr(module, "__dict__", {}):
                module.entry_script_path = os.path.realpath(sys.argv[0])
        try:
            if words[0] == "-c":
                sys.path.insert(0, "")
                exec(words[1], {"__name__": "__main__"})
            elif words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, os.path.dirname(words[0]))
                runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0) if isinstance(end.code, int | None) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
"""


@dataclass
class Forks:
    """Starts programs one after another."""

    server: subprocess.Popen
    directory: Path
    """For what the programs print."""

    def run(self, words: Sequence[object], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
        """What `subprocess.run([sys.executable, *words])` does, without standard input: a file's path, `-m` and a
        module, or `-c` and a program come first."""
        output, errors = (self.directory / name for name in ("output", "errors"))
        for path in (output, errors):
            path.write_text("")
        words = [str(word) for word in words]
        job = {"words": words, "cwd": str(cwd), "environment": dict(environment)}
        self.server.stdin.write(json.dumps(job | {"output": str(output), "errors": str(errors)}) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the process that forks is gone"
        return subprocess.CompletedProcess(words, int(answer), output.read_text(), errors.read_text())


@contextlib.contextmanager
def forks_of(imports: str, directory: Path, environment: Mapping[str, str] | None = None) -> Iterator[Forks]:
    """A process that has executed `imports` in an environment, this process's if None, and forks."""
    command = [sys.executable, "-c", SERVER, imports]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:
        yield Forks(server, directory)
        server.stdin.close()
