"""Run as a program: prepare whose parent is slow to collect blocks, so that a test can kill it in the middle."""

import sys
import time

import pangu_ms.data.blocks as blocks
from pangu_ms.data.prepare import prepare

if __name__ == "__main__":
    collect = blocks._finish_some

    def slowly(pending, report):
        time.sleep(0.2)
        collect(pending, report)

    blocks._finish_some = slowly
    corpus, tokenizer, output = sys.argv[1:]
    prepare([corpus], tokenizer, output, seq_length=63, held_out=0.1, num_workers=2, progress=False)
