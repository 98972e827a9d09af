"""`pangu run-mindir`: continue prompts with a MindIR package. This needs mindspore and the tokenizer, but no model
code."""

from argparse import Namespace

from pangu_ms.cli import options
from pangu_ms.cli.generate import DOMAIN_HELP, generate_and_print, open_answers, read_prompts, with_default
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.parser import Parser
from pangu_ms.export.kernels import announcement
from pangu_ms.export.package import Package, read_key
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.generate import Generator


def build_parser(package: str | None = None) -> Parser:
    """The verb's options. `package` is given if the command runs as the run.pyz of that package."""
    parser = Parser(prog="run.pyz" if package else "pangu run-mindir", description=__doc__)
    if package is None:
        parser.add_argument("package", metavar="PACKAGE", help="a directory written by `pangu export`")
        text = "refuse the package unless it was signed with the key of this Ed25519 public key, a PEM file"
        parser.add_argument("--verify-key", metavar="FILE", help=text)
    else:  # no --verify-key: a runner inside the package cannot vouch for the package
        parser.set_defaults(package=package, verify_key=None)
    parser.add_argument("--key-file", metavar="FILE", help="file with the AES key of an encrypted package")
    options.add_allow_kernels(parser)
    options.add_generation(parser)
    options.add_scheduling(parser)
    options.add_threads(parser)
    options.add_domain(parser, DOMAIN_HELP)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str], package: str | None = None) -> int:
    """Entry of the verb. `package` is given if the command runs as the run.pyz of that package."""
    return build_parser(package).run(argv)


def _run(args: Namespace) -> int:
    options.require_threads(args)
    sampling = options.sampling_config(args)
    prompts = read_prompts(args, sampling)
    key = read_key(args.key_file)
    opened = Package.open(args.package, args.verify_key)
    opened.require_key(key)
    tokenizer, prompts = opened.tokenizer(), with_default(prompts, args.domain, opened.domains)
    # The next checks find mistakes before MindSpore is started, which takes seconds.
    opened.domains.indices([prompt.domain for prompt in prompts], len(prompts))
    opened.shape.require_room([tokenizer.encode_prompt(prompt.text) for prompt in prompts])
    opened.shape.require_beams(max(prompt.sampling.num_beams for prompt in prompts))
    scheduling = options.scheduling(args, tokenizer)
    if args.allow_kernels:
        tell(announcement(args.package, opened.kernels))
    runtime.quiet(args.verbose)

    def load() -> Decoder:
        options.use_threads(args)
        runtime.start(opened.manifest["target"])
        return opened.decoder(key, args.allow_kernels)

    # The file of --output says whether kernels computed it, which is known when they are loaded.
    decoder = load() if args.allow_kernels and opened.kernels else None
    model = opened.digest + (" with kernels" if decoder and decoder.with_kernels else "")
    with open_answers(args, prompts, model) as answers:
        generator = Generator(decoder or load(), tokenizer, **scheduling)
        generate_and_print(generator, prompts, args.stream, args.json, answers)
    return 0
