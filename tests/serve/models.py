"""A served model of any decoder."""

from pangu_ms.serve.chat_template import load_chat_template
from pangu_ms.serve.models import ServedModel


def model_of(decoder, tokenizer, name="toy", template="auto", **options):
    """A model that is loaded already."""
    chat = load_chat_template(template, tokenizer)
    return ServedModel(name, tokenizer, decoder.shape, decoder.domains, chat, lambda: decoder, **options)
