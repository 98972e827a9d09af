"""Programs in forks end, print and find their arguments as programs of their own."""

import os

PROGRAM = """
import os, sys
print(sys.argv, os.getcwd(), "mindspore" in sys.modules, "MADE_UP" in os.environ)
sys.exit(*sys.argv[1:])
"""


def test_a_program_has_its_words_its_place_and_its_environment_and_ends_as_it_says(forks, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = forks.run(["program.py"], tmp_path, os.environ | {"MADE_UP": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['program.py'] {tmp_path} True True\n", "")
    done = forks.run(["program.py", "wrong"], tmp_path, os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        f"['program.py', 'wrong'] {tmp_path} True False\n",
        "wrong\n",
    )
    for program, code, words in (
        ("import sys; sys.exit(3)", 3, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ):
        done = forks.run(["-c", program], tmp_path, os.environ)
        assert done.returncode == code and words in done.stderr
    done = forks.run(["-m", "pangu_ms", "trian"], tmp_path, os.environ)
    assert done.returncode == 2 and "did you mean 'train'" in done.stderr
