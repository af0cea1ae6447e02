"""The rules about the engine that samples: which settings belong to which engine, and what it cannot do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gvpo.config.settings import OWN_REFERENCES
from gvpo.retries import address

if TYPE_CHECKING:
    from gvpo.config.plan import RunPlan

Broken = Iterator[tuple[bool, str]]
"""Pairs of whether a rule is broken and the message in that case."""

SERVER = ("sampling.server_", "sampling.weight_transfer", "sampling.in_flight_updates")
VLLM = ("sampling.engine_options", "sampling.engine_sleep")


def impossible_engines(plan: "RunPlan") -> Broken:
    """Yield the rules between the engine and other settings."""
    c = plan.settings
    yield (
        c.sampling_engine == "server" and not c.sampling_server_urls,
        "sampling.engine='server' needs sampling.server_urls, for example ['http://localhost:8000']",
    )
    for url in c.sampling_server_urls:
        yield from address_errors(url, "sampling.server_urls", "sampling.server_api_key_env")
    yield (
        c.sampling_engine != "transformers" and bool(c.sampling_allow or c.sampling_ban),
        f"sampling.allow and sampling.ban work with sampling.engine='transformers', not with {c.sampling_engine!r}; "
        "remove them, or change the engine",
    )
    yield (
        c.sampling_engine == "transformers" and c.sampling_dtype != "auto" and c.sharding == "full",
        f"sampling.dtype={c.sampling_dtype!r} makes a copy of the policy, which train.sharding='full' splits; remove "
        "one, or set sampling.engine='server'",
    )
    if c.sampling_in_flight_updates:
        yield from _in_flight(plan)


def _in_flight(plan: "RunPlan") -> Broken:
    c = plan.settings
    yield (
        "old_logprobs" in plan.objective.needs,
        f"sampling.in_flight_updates mixes policies within a completion, and the ratios of {c.objective} need one "
        "policy; remove it, or choose an objective without ratios, such as gvpo",
    )
    yield (
        plan.reads_reference and c.reference in OWN_REFERENCES,
        f"sampling.in_flight_updates mixes policies within a completion, so no single policy is the reference "
        f"{c.reference!r}; set objective.reference to 'initial' or 'every:N'",
    )


def address_errors(url: str, key: str, key_setting: str) -> Broken:
    """Yield the rules about the address of an HTTP service.

    Args:
        url: The address.
        key: Setting with the address.
        key_setting: Setting with the name of the variable that contains the key.
    """
    parts = address(url)
    quoted = f'; in a shell, write a list as \'{key}=["http://a:8000", "http://b:8000"]\'' if "[" in url[:1] else ""
    yield (
        not parts.scheme,
        f"{key} contains {url!r}, which is not an address; give one such as http://localhost:8000{quoted}",
    )
    yield (
        "@" in parts.netloc,
        f"{key} contains a password, which would be written to config.json; name {parts.hostname} alone, and set "
        f"{key_setting} to a variable with the key",
    )
    yield (
        bool(parts.query or parts.fragment),
        f"{key} contains a '?' or '#', which a base address cannot have; give one such as http://localhost:8000, and "
        f"set {key_setting} to a variable with the key, if there is one",
    )
