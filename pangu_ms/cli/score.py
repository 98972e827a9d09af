"""`pangu score`: log-probabilities of given continuations and texts."""

import math
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.core import files, runtime, small_json
from pangu_ms.core.console import tell
from pangu_ms.core.errors import DataError, GenerationError
from pangu_ms.core.parser import NewFile, Parser
from pangu_ms.core.progress import progress_bar
from pangu_ms.core.table import print_json
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.answers import ResultFile
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.scoring import ContinuationScore, Item, Scorer, encode_pair
from pangu_ms.infer.window_scorer import WindowScorer

TEXT_OR_IDS: Any = (str, [int])
FORMS: dict[str, Any] = {
    "prefix": TEXT_OR_IDS,
    "continuations": [TEXT_OR_IDS],
    "text": TEXT_OR_IDS,
    "domain": (str, None),
    "id": (str, int, None),
}
"""Keys of a line, and what they may hold."""
INPUT_HELP = (
    'a .jsonl file with an object in each line: {"prefix": ..., "continuations": [...]} or {"text": ...}, of texts or'
    " of lists of token ids; perhaps with a domain and an id"
)


@dataclass(frozen=True)
class Line:
    """What a line of the file asks for: the scores of continuations, or of a text."""

    place: str
    """File and number of the line."""
    text: str | list[int] | None
    prefix: str | list[int]
    continuations: list[str | list[int]]
    domain: str
    id: str | int | None

    def item(self, tokenizer: Tokenizer, window: int, domain: int) -> Item:
        """It as token ids."""
        try:
            return self._item(tokenizer, window, domain)
        except DataError as error:  # such as half a surrogate pair, which JSON can write
            raise GenerationError(f"{self.place}: {error}") from None

    def _item(self, tokenizer: Tokenizer, window: int, domain: int) -> Item:
        if self.text is not None:
            ids = tokenizer.encode(self.text) if isinstance(self.text, str) else self.text
            return Item.text(ids, window, domain, tokenizer.first_ids)
        return Item(tuple(self._pair(tokenizer, one) for one in self.continuations), domain)

    def _pair(self, tokenizer: Tokenizer, continuation: str | list[int]) -> tuple[Sequence[int], Sequence[int]]:
        if isinstance(self.prefix, str) and isinstance(continuation, str):
            context, ids = encode_pair(tokenizer, self.prefix, continuation)
            if continuation and not ids:
                raise GenerationError(
                    f"{self.place}: continuation {continuation[:40]!r} has no token of its own, since it and the end of"
                    " the prefix are one token; divide the text elsewhere, or give token ids"
                )
            return context, ids
        prefix, own = (one if isinstance(one, list) else tokenizer.encode(one) for one in (self.prefix, continuation))
        return prefix, own

    def result(self, index: int, item: Item, scores: Sequence[ContinuationScore]) -> dict[str, Any]:
        """Its scores as JSON."""
        fields: dict[str, Any] = {"index": index} if self.id is None else {"id": self.id, "index": index}
        if self.text is None:
            of_each = [_fields([score], [pair[1]]) for score, pair in zip(scores, item.pairs)]
            return fields | {"continuations": of_each}
        tokens = [pair[1] for pair in item.pairs]
        fields |= _fields(scores, tokens)
        fields["perplexity"] = math.exp(min(-fields["logprob"] / len(fields["tokens"]), 700.0))
        if isinstance(self.text, str):
            fields["bits_per_byte"] = -fields["logprob"] / (math.log(2) * len(self.text.encode()))
        return fields


def _fields(scores: Sequence[ContinuationScore], tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Scores of tokens that follow each other, as JSON."""
    fields: dict[str, Any] = {
        "logprob": sum(score.total for score in scores),
        "is_greedy": all(score.is_greedy for score in scores),
        "tokens": [token for part in tokens for token in part],
        "logprobs": [value for score in scores for value in score.logprobs],
        "greedy": [value for score in scores for value in score.greedy],
    }
    cut = sum(score.cut_tokens for score in scores)
    return fields | ({"cut_tokens": cut} if cut else {})


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu score", description=__doc__)
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help=INPUT_HELP)
    options.add_json(parser, "one JSON object per line of the file, with the log-probability of each token")
    text = "write these objects to this file; the same command goes on where it was interrupted"
    parser.add_argument("--output", type=Path, action=NewFile, metavar="FILE", help=text)
    options.add_weights(parser)
    options.add_cache_dtype(parser)
    options.add_own_tokenizer(parser)
    options.add_domain(parser, "domain of the lines that name none (default: the model's own default)")
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    lines = read_lines(args.input)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.config.load import config_to_dict
    from pangu_ms.export.package import GRAPH_NAMES
    from pangu_ms.infer.load import domains_of, load_scorer, load_tokenizer

    if any((args.checkpoint / name).is_file() for name in GRAPH_NAMES):
        raise GenerationError(
            f"{args.checkpoint}: is a MindIR package, whose graph computes the logits of last tokens alone; name the"
            " checkpoint that it was made from"
        )
    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    tokenizer, domains = load_tokenizer(checkpoint, args.tokenizer), domains_of(config.model)
    items = []
    for line in lines:
        domain = domains.index(_domain(line, args.domain, domains), f"{line.place}: ")
        items.append(line.item(tokenizer, config.model.seq_length, domain))
    model = [checkpoint.manifest, config_to_dict(config)["model"], args.weights, tokenizer.fingerprint]
    model += [args.cache_dtype] if args.cache_dtype else []
    header = {"model": files.sha256_json(model), "items": files.sha256_json([asdict(item) for item in items])}
    keys = [(index,) for index in range(len(items))]
    called = ("scores", "items")
    with ResultFile(args.output, keys, header, ("index",), called) if args.output else nullcontext() as results:
        places = [line.place for line in lines]
        scorer = load_scorer(checkpoint, items, tokenizer, config, args.weights, places, args.cache_dtype)
        _score_and_print(scorer, lines, items, results, args)
    return 0


def _domain(line: Line, given: str | None, domains: Domains) -> str:
    """As for prompts: a model without domains does not read those of the lines."""
    return (line.domain if domains.names else "") or given or ""


def read_lines(path: Path) -> list[Line]:
    """The lines of a .jsonl file.

    Raises:
        GenerationError: the file cannot be read or holds nothing, or a line is not as INPUT_HELP says.
    """
    try:
        texts = small_json.read_bytes(path, pipes=True).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise GenerationError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise GenerationError(f"{path}: cannot be read ({error}); name a file with an object in each line") from None
    lines = [_line(text, f"{path}:{number}") for number, text in enumerate(texts, 1) if text.strip()]
    if not lines:
        raise GenerationError(f"{path}: holds nothing to score; write an object in each line")
    return lines


def _line(text: str, place: str) -> Line:
    try:
        value = small_json.parse_object(text)
    except ValueError as error:
        raise GenerationError(f"{place}: {error}; write a JSON object in each line") from None
    if unknown := [key for key in value if key not in FORMS]:
        raise GenerationError(
            f"{place}: unknown key {unknown[0][:40]!r}; known: {', '.join(FORMS)}; rename or remove it"
        )
    wanted = {"text"} if "text" in value else {"prefix", "continuations"}
    if wanted != value.keys() & {"text", "prefix", "continuations"}:
        raise GenerationError(
            f"{place}: has the keys {', '.join(value) or 'of nothing'}; it must have prefix and continuations, or text"
            " alone; correct it"
        )
    if wrong := small_json.misfit(value, {key: FORMS[key] for key in value}):
        raise GenerationError(
            f"{place}: {wrong}; texts are JSON strings or lists of token ids, continuations a list of them; correct it"
        )
    if not value.get("continuations", True):
        raise GenerationError(f"{place}: continuations is empty; give at least one")
    return Line(
        place,
        value.get("text"),
        value.get("prefix", ""),
        value.get("continuations", []),
        value.get("domain") or "",
        value.get("id"),
    )


def _score_and_print(
    scorer: Scorer | WindowScorer,
    lines: Sequence[Line],
    items: Sequence[Item],
    results: ResultFile | None,
    args: Namespace,
) -> None:
    """Score, and write or print the scores. A line that fails is told when the others are there."""
    begun = len(results.lines) if results else 0
    indices = [index for index in range(len(items)) if results is None or (index,) in results.missing]
    number = sum(len(items[index].pairs) for index in indices)
    found: dict[int, dict[str, Any]] = {}
    errors: dict[int, str] = {}
    with progress_bar(number > 1, total=number, desc="score", unit="text", leave=False) as bar:
        for position, scores in scorer.score_all([items[index] for index in indices], bar.update):
            index = indices[position]
            failed = [f"continuation {i}: {score.error}" for i, score in enumerate(scores, 1) if score.error]
            if failed:
                errors[index] = f"{lines[index].place}: {failed[0]}"
                continue
            found[index] = lines[index].result(index, items[index], scores)
            if results:
                results.add_line(found[index])
    if scorer.counts.cut_contexts:
        tell(
            f"pangu score: {scorer.counts.cut_contexts} contexts are longer than the window of {scorer.window} tokens:"
            f" {scorer.counts.cut_tokens} tokens were cut off at their beginnings"
        )
    if results:
        results.close()
    else:
        for index in sorted(found):
            _print(lines[index], found[index], args.json)
    if errors:
        raise GenerationError(errors[min(errors)])
    if results:
        print(f"{results.path}: {len(items)} scores" + (f", {begun} of them were there" if begun else ""))


def _print(line: Line, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result, ensure_ascii=False)
        return
    where = f"[{result['index'] + 1}]"
    if line.text is not None:
        print(
            f"{where} {result['logprob']:.4f} ({len(result['tokens'])} tokens, perplexity {result['perplexity']:,.4g})"
        )
        return
    for continuation, one in zip(line.continuations, result["continuations"]):
        greedy = ", greedy" if one["is_greedy"] else ""
        print(f"{where} {one['logprob']:.4f} ({len(one['tokens'])} tokens{greedy}) {continuation}")
