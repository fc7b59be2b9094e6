"""What a reload would change on a server, as far as the server can be asked.

It cannot be asked for its configuration. But it tells how the versions of a model are, and which version a
label stands for; so of every model that the new configuration names it can be said what would happen. What is
in force and not in the new one is only seen where the caller knows the old one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving import AsyncClient, ModelServerConfig, ModelStatus

__all__ = ["Change", "observe", "resolve_label"]


@dataclass(frozen=True)
class Change:
    """One thing that a reload would do to one server."""

    #: ``"+"``: comes, ``"-"``: goes, ``"~"``: changes.
    sign: str
    #: The address of the server.
    target: str
    #: Name of the model.
    model: str
    #: What happens to it.
    text: str

    def __str__(self) -> str:
        return f"{self.sign} {self.model}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return asdict(self)


async def resolve_label(client: AsyncClient, model: str, label: str) -> int | None:
    """The version that a label stands for on one server; None if it knows no such label, or cannot serve it.

    Args:
        client: of that server alone: a call by label goes to any of a client's targets.
        model: name of the model.
        label: the label.

    Raises:
        RPCError: there is no answer.
    """
    from aioserving import NotFoundError, VersionLabelNotFoundError

    try:
        metadata = await client.get_model_metadata(model, version_label=label)
    except (NotFoundError, VersionLabelNotFoundError):
        return None
    return metadata.version


async def observe(
    client: AsyncClient, target: str, new: ModelServerConfig, old: ModelServerConfig | None
) -> list[Change]:
    """What a reload with `new` would do to a server.

    Args:
        client: of that server alone.
        target: its address.
        new: the configuration to come.
        old: the one in force, if somebody knows it.

    Raises:
        RPCError: the server does not answer.
    """
    from aioserving import NotFoundError, diff_configs

    changes: list[Change] = []
    for model in new.model_config_list:
        try:
            status = await client.get_model_status(model.name)
        except NotFoundError:
            changes.append(Change("+", target, model.name, f"is added, from {model.base_path}"))
            continue
        if not status.available and all(item.ended for item in status):
            changes.append(Change("+", target, model.name, f"is loaded again, from {model.base_path}"))
        changes += _versions(model.pb, status, target)
        for label, version in sorted(model.version_labels.items()):
            now = await resolve_label(client, model.name, label)
            if now is None:
                text = f"label {label!r} is set to version {version}"
                changes.append(Change("~", target, model.name, text))
            elif now != version:
                text = f"label {label!r} moves from version {now} to {version}"
                changes.append(Change("~", target, model.name, text))
    if old is not None:
        diff = diff_configs(old, new)
        changes += [Change("-", target, model.name, "is unloaded") for model in diff.removed]
        changes += [
            Change("~", target, name, str(change))
            for name, found in diff.changed.items()
            for change in found
            # What comes of versions and labels is above, as the server sees it.
            if not change.name.startswith(("model_version_policy", "version_labels"))
        ]
    return changes


def _versions(model: Any, status: ModelStatus, target: str) -> list[Change]:
    """What comes and goes where the configuration names the versions one by one."""
    from aioserving import State

    policy = model.model_version_policy
    if not policy.HasField("specific"):
        return []
    wanted = set(policy.specific.versions)
    there = {item.version for item in status if item.state in (State.START, State.LOADING, State.AVAILABLE)}
    return [
        *(Change("+", target, model.name, f"loads version {version}") for version in sorted(wanted - there)),
        *(
            Change("-", target, model.name, f"unloads version {version}")
            for version in sorted(there - wanted)
        ),
    ]
