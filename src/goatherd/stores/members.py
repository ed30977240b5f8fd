"""The store of one region, and the id that the secret has in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from goatherd.errors import ConfigurationError
from goatherd.providers.base import Guarantees, SecretProvider
from goatherd.providers.values import ORG_FIELD


class Replication(StrEnum):
    """How a follower, which is a copy of the primary store in another region, gets its content."""

    PLATFORM = "platform"
    """The platform copies it, such as AWS replica regions or Vault performance replication."""
    GOATHERD = "goatherd"
    """The command that writes the primary store writes the follower afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMember:
    """The store of one region.

    Attributes:
        region: The operator's name of the region.
        provider: The store.
        template: Id of the secret in this store; ``{org}`` stands for the organization.
        replication: How this follower gets its content; None for the primary store.
    """

    region: str
    provider: SecretProvider
    template: str
    replication: Replication | None = None

    @property
    def is_primary(self) -> bool:
        """Whether rotations write this store."""
        return self.replication is None


def check_members(members: Sequence[StoreMember]) -> None:
    """Check that each region has only one store, and that all secrets' ids contain ``{org}``, or none of them.

    Raises:
        ConfigurationError: A region is named twice, or only some of the secrets' ids contain ``{org}``.
    """
    regions = [member.region for member in members]
    for region in regions:
        if regions.count(region) > 1:
            raise ConfigurationError(
                f"stores: region {region!r} is named twice", hint="Give each store a region of its own."
            )
    if len({ORG_FIELD in member.template for member in members}) > 1:
        without = next(member.region for member in members if ORG_FIELD not in member.template)
        raise ConfigurationError(
            f"stores: the address of region {without!r} does not contain {ORG_FIELD}, but other addresses do",
            hint=f"Write {ORG_FIELD} into every address, or into none.",
        )


def find_secret_id(member: StoreMember, primary: StoreMember, secret_id: str) -> str:
    """Return the id that a secret has in the store `member`; `secret_id` is its id in the primary store."""
    if ORG_FIELD not in primary.template:
        return member.template
    first, *rest = (re.escape(part) for part in primary.template.split(ORG_FIELD))
    found = re.fullmatch(first + "(.+)" + r"\1".join(rest), secret_id, re.DOTALL)
    return secret_id if found is None else member.template.replace(ORG_FIELD, found[1])


class StoreGroup(SecretProvider):
    """Several stores behind the interface of a single one, opened and closed together. It has no address."""

    scheme = "stores"
    members: Sequence[StoreMember]
    _guarantees: Guarantees
    _opened: AsyncExitStack | None = None

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        raise ConfigurationError(
            f"{uri!r} cannot be opened: stores of several regions have no common address",
            hint="Give the address of each store in the section [stores] of goatherd.toml.",
        )

    @property
    def guarantees(self) -> Guarantees:
        return self._guarantees

    async def _open(self) -> None:
        async with AsyncExitStack() as stack:
            for member in self.members:
                await stack.enter_async_context(member.provider)
            self._opened = stack.pop_all()

    async def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()
