"""Helpers that the families' readers and writers of config.json files share. Source: transformers 4.57,
configuration_utils.py, configuration_llama.py."""

import re
from collections.abc import Iterable
from typing import Any

from pangu_ms.core.errors import CheckpointError

# Keys that do not affect the logits: for training, generation, bookkeeping, and other programs that read the same file.
_HARMLESS = re.compile(
    r"_.*|architectures|model_type|(torch_)?dtype|\w*version|initializer_range|use_cache|auto_map|\w+_token_id|"
    r"\w*dropout|\w*_pdrop|name_or_path|attn_implementation|output_\w+|(use_)?return_dict(_in_generate)?|"
    r"id2label|label2id|num_labels|problem_type|task_specific_params|finetuning_task|tokenizer_class|"
    r"chunk_size_feed_forward|torchscript|use_bfloat16|tf_legacy_loss|gradient_checkpointing|max_length|"
    r"min_length|max_new_tokens|max_sequence_length|do_sample|early_stopping|"
    r"num_(return_sequences|beams|beam_groups)|diversity_penalty|temperature|top_[kp]|typical_p|"
    r"repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|"
    r"(begin_)?suppress_tokens|exponential_decay_length_penalty|remove_invalid_values|is_decoder|"
    r"is_llama_config|transformers\.js_config|unsloth_\w+"
)
_ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu": "gelu_erf",
    "quick_gelu": "fast_gelu",
    "swish": "silu",
}
_WRITTEN = {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu", "fast_gelu": "quick_gelu"}


def require_understood(where: str, tree: dict[str, Any], known: Iterable[str]) -> None:
    """Raise CheckpointError for an unknown key that may change what the model computes. A key that is null, false, 0 or
    empty is accepted, because it switches nothing on.

    Args:
        where: the file, for messages.
        tree: its content.
        known: keys that the caller handles itself.
    """
    known = set(known)
    for key, value in tree.items():
        if value and key not in known and not _HARMLESS.fullmatch(key):
            raise CheckpointError(
                f"{where}: {key[:80]}={str(value)[:80]!r}: is not understood, and may change what the model computes;"
                " remove it if it does not"
            )


def own_activation(name: Any) -> Any:
    """Our name of an activation that a config.json names. An unknown name is returned as it is; the validation of the
    fields refuses it."""
    return _ACTIVATIONS.get(name, name) if isinstance(name, str) else name


def written_activation(name: str) -> str:
    """The config.json name of one of our activations: the inverse of `own_activation`."""
    return _WRITTEN.get(name, name)
