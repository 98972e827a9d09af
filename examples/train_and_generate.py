"""Text to model to text: make a corpus, train a tokenizer and a tiny PanGu-alpha on it, score it, continue a prompt.

python examples/train_and_generate.py OUTPUT [overrides such as train.steps=100]
"""

import json
import sys
from pathlib import Path

from pangu_ms import evaluate, generate, load_config, train
from pangu_ms.core import files, runtime
from pangu_ms.core.console import guarded
from pangu_ms.data.corpus import Corpus
from pangu_ms.data.prepare import prepare
from pangu_ms.data.tokenizer import train_tokenizer
from pangu_ms.infer.sampling import SamplingConfig

MODEL = ["vocab_size=300", "hidden_size=32", "num_layers=2", "num_heads=4", "seq_length=32"]
RUN = ["train.batch_size=8", "train.steps=200", "optimizer.warmup_steps=4", "optimizer.lr=0.01"]


def write_corpus(path: Path) -> None:
    """A JSON object with a "text" a line, as `pangu data prepare` reads them: what eight animals do all day."""
    animals, places = "cat dog fox owl cow pig hen bee".split(), "house barn wood tree field yard nest hive".split()
    days = "Monday Tuesday Wednesday Thursday Friday".split()
    documents = [f"On {day} the {a} sleeps in the {p}." for day in days for a, p in zip(animals, places)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents * 8))


def main(argv: list[str]) -> str:
    """Do it all in a new directory; returns the continuation."""
    output, overrides = Path(argv[0]), argv[1:]
    files.require_free(output)
    output.mkdir(parents=True, exist_ok=True)
    corpus, tokenizer, records, run = (output / name for name in ("corpus.jsonl", "tokenizer", "records", "run"))
    write_corpus(corpus)
    config = load_config("alpha/tiny", [f"model.{setting}" for setting in MODEL] + RUN + overrides)

    texts = (document.text for document in Corpus([str(corpus)]))
    train_tokenizer(texts, config.model.vocab_size, segmenter="none").save(tokenizer)
    prepare([str(corpus)], tokenizer, records, seq_length=config.model.seq_length, held_out=0.1, progress=False)

    result = train(config, records, run)
    print(f"step {result.step}: loss {result.loss:.2f} nats per token, {result.tokens_per_second:,.0f} tokens/s")
    print(f"held-out perplexity {evaluate(run, records)['perplexity']:.1f}")
    (continuation,) = generate(run, ["On Friday the owl"], SamplingConfig(max_new_tokens=8, temperature=0))
    print(f"On Friday the owl{continuation.text}\nthe run is in {run}")
    return continuation.text


def command() -> int:
    """The program: a mistake is one line and exit code 2."""
    main(sys.argv[1:])
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runtime.quiet()  # MindSpore's own warnings
    sys.exit(guarded("train_and_generate.py", command))
