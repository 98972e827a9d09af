"""Domains of records and of models: which domains a run reads, and whether the records and the model have them. No
mindspore import."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pangu_ms.config.schema import DataConfig
from pangu_ms.core import yaml_file
from pangu_ms.core.errors import DataError
from pangu_ms.data.corpus import UNKNOWN_DOMAIN
from pangu_ms.models.common.config import ModelConfig

NAME_DOMAINS = "prepare them with `pangu data prepare --domain NAME=FILES`, which names the domain of files"


def read_domains(source: str, found: Sequence[str], data: DataConfig) -> list[str]:
    """The domains that a run reads, in the order of the records.

    Args:
        source: the records, for messages.
        found: the domains of the records.
        data: its `mixture` or `samples_per_domain`, if there is one, says which domains are read.

    Raises:
        DataError: a domain that is to be read is not in the records.
    """
    wanted = data.mixture or data.samples_per_domain
    if not wanted:
        return list(found)
    field = "mixture" if data.mixture else "samples_per_domain"
    require_domains(f"data.{field}: {source}", found, [name for name, amount in wanted.items() if amount])
    return [name for name in found if wanted.get(name)]


def require_run_domains(source: str, found: Sequence[str], data: DataConfig, model: ModelConfig) -> None:
    """Check, without reading rows, that a run's training records have the domains that it reads, and its model, too.

    With data.order, the order file decides which rows are read; then the model is checked when the file is read.

    Raises:
        DataError: the records or the model lack a domain.
    """
    read = read_domains(source, found, data)
    if not data.order:
        require_known(source, read, model)


def require_domains(source: str, found: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise DataError unless the records `source`, which have the domains `found`, have all domains that are wanted."""
    for name in wanted:
        if name not in found:
            advice = NAME_DOMAINS if list(found) == [UNKNOWN_DOMAIN] else "name one of these"
            raise DataError(f"{source}: no rows of domain {name}; there are rows of {shown(found)}; {advice}")


def require_known(source: str, read: Iterable[str], model: ModelConfig, leave_out: str = "mixture") -> None:
    """Check that a model has the domains of the rows that it is to read. A model without domains reads any rows.

    Args:
        source: the records, for messages.
        read: the domains of the rows.
        model: the configuration of the model.
        leave_out: how the message advises to leave other domains out: "mixture" names the field data.mixture, "option"
            the option --domain; "" if there is no way.

    Raises:
        DataError: the model lacks a domain.
    """
    if not model.domains:
        return
    read = list(read)
    lacking = [name for name in read if name not in model.domains]
    if not lacking:
        return
    both = [name for name in model.domains if name in set(read)]
    found = "rows without a domain" if lacking[0] == UNKNOWN_DOMAIN else f"rows of domain {lacking[0]}"
    advice = NAME_DOMAINS
    if leave_out == "mixture" and UNKNOWN_DOMAIN not in lacking:
        advice = f"name them in a new model by {_list_override(read)}, or {advice}"
    if both and leave_out == "mixture":
        advice = f"leave the others out by {override('mixture', dict.fromkeys(both, 1))}, or {advice}"
    elif both and leave_out:
        advice = f"name one that it has by --domain ({shown(both)}), or {advice}"
    none = "" if both else ", and has that of none"
    raise DataError(
        f"{source}: {found}; the model, with domains {shown(model.domains)}, must have the domain of every"
        f" row{none}; {advice}"
    )


def known_domains(found: Sequence[str], model: ModelConfig) -> list[str]:
    """Those domains of the records that a model has; all of them for a model without domains."""
    return [name for name in found if not model.domains or name in model.domains]


def model_indices(found: Sequence[str], model: ModelConfig) -> np.ndarray:
    """The index of each domain of the records in the model's list: int32 [len(found)]; -1 if the model lacks it."""
    indices = {name: index for index, name in enumerate(model.domains)}
    return np.array([indices.get(name, -1) for name in found], np.int32)


def shown(names: Iterable[str], most: int = 8) -> str:
    """Names of domains, abbreviated for a message."""
    listed = ["(none named)" if name == UNKNOWN_DOMAIN else name for name in names]
    return ", ".join(listed[:most]) + (f", ... ({len(listed)} in all)" if len(listed) > most else "")


def override(field: str, amounts: Mapping[str, int]) -> str:
    """The word of a command line that sets a field of the section data to amounts by domain."""
    value = ", ".join(f"{_yaml_word(name)}: {amount}" for name, amount in amounts.items())
    return shlex.quote(f"data.{field}={{{value}}}")


def _list_override(names: Iterable[str]) -> str:
    """The word of a command line that gives a model these domains."""
    return shlex.quote(f"model.domains=[{', '.join(map(_yaml_word, names))}]")


def _yaml_word(name: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_]\w*", name) and yaml_file.parse(name) == name  # YAML reads no as false
    return name if plain else json.dumps(name, ensure_ascii=False)
