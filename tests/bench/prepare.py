"""Throughput of `pangu data prepare` beside jieba and SentencePiece alone, on the same cores, in turns.

    python -m tests.bench.prepare --corpus FILE... [--tokenizer PATH] [--workers 2] [--repeat 3] [--json]

The baseline is `jieba.cut`, the two replacements and SentencePiece's encode, in as many warm processes, each with its
texts already in memory. Ours is the whole command in a fresh process, from the interpreter's start to the committed
directory.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pangu_ms.data.corpus import Corpus
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer


def baseline_worker(model: str, texts: list[str], segmenter: str, connection) -> None:
    import jieba
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    jieba.setLogLevel(60)
    jieba.initialize()
    connection.send("ready")
    connection.recv()
    for text in texts:
        if segmenter == "jieba":
            text = " ".join(
                word.replace(" ", "\u2582").replace("\n", "\u2583") for word in jieba.cut(text, cut_all=False)
            )
        processor.encode(text)
    connection.send("done")


def baseline(model: str, texts: list[str], workers: int, segmenter: str) -> float:
    """Seconds for all texts in warm processes."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for rank in range(workers):
        here, there = context.Pipe()
        processes.append(context.Process(target=baseline_worker, args=(model, texts[rank::workers], segmenter, there)))
        processes[-1].start()
        ends.append(here)
    for end in ends:
        end.recv()
    started = time.perf_counter()
    for end in ends:
        end.send("go")
    for end in ends:
        end.recv()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def ours(corpus: list[str], tokenizer: str, workers: int, scratch: Path) -> float:
    """Seconds of the whole command."""
    command = [
        sys.executable,
        "-m",
        "pangu_ms",
        "data",
        "prepare",
        "--json",
        "--corpus",
        *corpus,
        "--tokenizer",
        tokenizer,
    ]
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        started = time.perf_counter()
        subprocess.run(
            [*command, "--output", f"{directory}/out", "--num-workers", str(workers)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--tokenizer", metavar="PATH", help="by default one of 8000 pieces is trained on the corpus")
    parser.add_argument("--segmenter", default="jieba", choices=("jieba", "none"), help="of the trained tokenizer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    texts = [document.text for document in Corpus(args.corpus)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        path, training = args.tokenizer, None
        if path is None:
            started = time.perf_counter()
            path = f"{scratch}/tokenizer"
            train_tokenizer(texts, 8000, args.segmenter).save(path)
            training = time.perf_counter() - started
        tokenizer = Tokenizer.load(path)
        model = Path(scratch) / "baseline.model"
        model.write_bytes(tokenizer.model)
        pairs = []
        for _ in range(args.repeat):
            alone = baseline(str(model), texts, args.workers, tokenizer.segmenter)
            pairs.append((megabytes / alone, megabytes / ours(args.corpus, path, args.workers, Path(scratch))))
    result = {"megabytes": megabytes, "workers": args.workers, "tokenizer_training_s": training}
    result |= {
        "alone_mb_s": [a for a, _ in pairs],
        "prepare_mb_s": [b for _, b in pairs],
        "ratio": [b / a for a, b in pairs],
    }
    result["median_ratio"] = statistics.median(result["ratio"])
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{megabytes:.2f} MB of text, {args.workers} processes"
        + (f", tokenizer trained in {training:.1f} s" if training else "")
    )
    for alone, whole in pairs:
        print(
            f"  jieba + SentencePiece alone {alone:6.2f} MB/s   prepare {whole:6.2f} MB/s   ratio {whole / alone:.2f}"
        )
    print(f"  median ratio {result['median_ratio']:.2f}")


if __name__ == "__main__":
    main()
