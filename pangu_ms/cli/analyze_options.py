"""The options that all analyses of a checkpoint over records share."""

from pangu_ms.cli import options
from pangu_ms.core.parser import Parser


def add_analysis(parser: Parser, purpose: str, plot: str, max_batches: str) -> None:
    """Add the options that name the records, limit how many are read, and name files for the result.

    Args:
        parser: gets the options.
        purpose: what the records are used for, such as "to count".
        plot: what --plot draws.
        max_batches: the text of --max-batches.
    """
    options.add_data(parser, required=True)
    options.add_split(parser, f"which records {purpose}; MindRecord files without a manifest are `train`")
    options.add_batch_size(parser)
    parser.add_argument("--max-batches", type=int, default=8, metavar="N", help=max_batches)
    options.add_new_file(parser, "--plot", f"new .png, .svg or .pdf: {plot}")
    options.add_new_file(parser, "--output", "also write the JSON into this new file")
    options.add_json(parser)
    options.add_verbose(parser)
