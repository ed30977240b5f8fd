"""The store of one region, and the id that the secret has in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self

from goatherd.errors import ConfigurationError, ProviderError, SecretNotFoundError, UnavailableError
from goatherd.providers.base import Call, Guarantees, SecretProvider
from goatherd.providers.capabilities import (
    BETWEEN,
    CopiedVersions,
    DiagnosableSecretProvider,
    Finding,
    Verdict,
    unreported_finding,
)
from goatherd.providers.values import ORG_FIELD, SecretVersion, VersionId

FOLLOWER_TIMEOUT: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMember:
    """The store of one region.

    Attributes:
        region: The operator's name of the region.
        provider: The store.
        template: Id of the secret in this store; ``{org}`` stands for the organization.
        is_primary: Whether commands write this store first; the others hold copies, which Goatherd writes.
    """

    region: str
    provider: SecretProvider
    template: str
    is_primary: bool = False


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


def describe_promotion(holder: str, primary: str) -> str:
    """Return what to do if the store of region `holder` has an identity and the primary store has none, as a hint."""
    return (
        f"The store of region {holder} holds an identity. If the store of region {primary} was lost or emptied, run"
        f" `goatherd stores promote {holder}`; otherwise check the addresses in [stores]."
    )


def describe_untrusted(region: str) -> str:
    """Return what to do about a store in `region` whose identity does not follow from that in another store."""
    return (
        "An attacker wrote one of the two, or many rotations lie between them. Keep the identity whose root the servers"
        f" trust: `goatherd doctor` shows whether they trust the primary store's. If they do, delete the secret in"
        f" region {region}, and `goatherd stores sync` fills it again. If not, `goatherd stores promote {region}`"
        " makes the other store the primary store."
    )


def combine_guarantees(members: Sequence[StoreMember]) -> Guarantees:
    """Return the guarantees of several stores together: those of the primary store, with these exceptions.

    A value is at most as long as every store allows. It is destroyed only if each store destroys it; otherwise the
    value can still be read there.
    """
    promised = [one.provider.guarantees for one in members]
    keeping = next((one for one in promised if not one.destroys), promised[0])
    return replace(
        promised[0],
        max_value_bytes=min(one.max_value_bytes for one in promised),
        destroys=keeping.destroys,
        deprecates=keeping.deprecates,
        disables=keeping.disables,
        push=False,
    )


class StoreGroup(SecretProvider):
    """Several stores behind the interface of a single one, opened and closed together. It has no address."""

    scheme = "stores"
    members: Sequence[StoreMember]
    primary: StoreMember
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

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Diagnose each store, as `DiagnosableSecretProvider.diagnose` does; a failure is a finding of its region."""
        found = await asyncio.gather(*(self._diagnose_member(one, secret_id) for one in self.members))
        return [
            one._replace(text=f"region {member.region}: {one.text}")
            for member, findings in zip(self.members, found, strict=True)
            for one in findings
        ]

    async def _diagnose_member(self, member: StoreMember, secret_id: str) -> list[Finding]:
        provider, failure = member.provider, self.recent_failure(member, secret_id)
        try:
            if failure is not None:
                raise failure.with_traceback(None)
            inner = find_secret_id(member, self.primary, secret_id)
            async with asyncio.timeout(FOLLOWER_TIMEOUT.total_seconds()):
                if isinstance(provider, DiagnosableSecretProvider):
                    return await provider.diagnose(inner)
                await provider.read(inner, attempts=1)
                return [unreported_finding(provider.scheme)]
        except (ProviderError, TimeoutError) as error:
            why = str(error) or f"no answer within {FOLLOWER_TIMEOUT.total_seconds():g} s"
            text = f"the store did not report its rights: {why}"
            # What to do about a missing secret depends on the other stores, and is stated with their comparison.
            hint = error.hint if isinstance(error, ProviderError) and not isinstance(error, SecretNotFoundError) else ""
            return [Finding(name="rights", verdict=Verdict.NOT_CHECKED, text=text, hint=hint)]

    async def copied_versions(self, secret_id: str) -> Sequence[CopiedVersions]:
        """List the versions in each other store, as `CopiedSecretProvider.copied_versions` does."""
        listed = self._listed_region(secret_id)
        others = [one for one in self.members if one.region != listed]
        return await asyncio.gather(*(self._list_copied(one, secret_id) for one in others))

    def guarantees_of(self, version: VersionId) -> Guarantees:
        """Return the guarantees of the store that has this version, as `CopiedSecretProvider.guarantees_of` does."""
        return self._locate(version)[0].provider.guarantees

    def own_guarantees(self) -> Sequence[Guarantees]:
        """Return the guarantees of each store."""
        return [one.provider.guarantees for one in self.members]

    async def _list_copied(self, member: StoreMember, secret_id: str) -> CopiedVersions:
        failure = self.recent_failure(member, secret_id)
        if failure is not None:
            return CopiedVersions(region=member.region, problem=failure.code)
        try:
            async with asyncio.timeout(FOLLOWER_TIMEOUT.total_seconds()):
                found = await member.provider.versions(find_secret_id(member, self.primary, secret_id))
        except SecretNotFoundError:
            return CopiedVersions(region=member.region)
        except (ProviderError, TimeoutError) as error:
            code = error.code if isinstance(error, ProviderError) else UnavailableError.code
            return CopiedVersions(region=member.region, problem=code)
        return CopiedVersions(region=member.region, versions=[self._qualify_version(member, one) for one in found])

    def _listed_region(self, secret_id: str) -> str:
        """Return the region whose versions `versions` lists."""
        raise NotImplementedError

    def recent_failure(self, member: StoreMember, secret_id: str) -> ProviderError | None:
        """Return the error of the last call to a store, if the store need not be asked again yet."""
        raise NotImplementedError

    def _id_in(self, member: StoreMember, call: Call) -> str:
        return find_secret_id(member, self.primary, call.secret_id)

    def _qualify_version(self, member: StoreMember, version: SecretVersion) -> SecretVersion:
        if member.is_primary:
            return version
        return replace(version, id=VersionId(f"{member.region}{BETWEEN}{version.id}"))

    def _locate(self, version: VersionId) -> tuple[StoreMember, VersionId]:
        region, between, inner = version.partition(BETWEEN)
        for member in self.members:
            if between and not member.is_primary and member.region == region:
                return member, VersionId(inner)
        return self.primary, version

    async def _open(self) -> None:
        async with AsyncExitStack() as stack:
            for member in self.members:
                await stack.enter_async_context(member.provider)
            self._opened = stack.pop_all()

    async def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()
