"""Foreign parameter names of PanGu-Sigma. Its weights were never published, so there are no names of others."""

from pangu_ms.models.common.gguf import absent
from pangu_ms.models.common.weights import MINDFORMERS

FORMATS = {"mindformers": MINDFORMERS}
GGUF = absent("experts that a table chooses")
