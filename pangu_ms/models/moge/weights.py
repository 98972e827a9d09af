"""Foreign parameter names of Pangu Pro MoE."""

from pangu_ms.models.common.weights import MINDFORMERS

FORMATS = {"mindformers": MINDFORMERS}
