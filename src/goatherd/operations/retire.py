"""Destroy the stored versions whose private keys no longer sign and whose grace period has ended: ``goatherd retire``.

Nothing is destroyed unless the caller passes `confirmed`. Afterwards the key inventory (which version holds which
private keys) is read again, so the result shows the keys that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from goatherd.errors import UnconfirmedError
from goatherd.key_inventory import KeyInventory, take_key_inventory
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import Servers, StoreName, open_cluster
from goatherd.operations.rotate import run_rotation
from goatherd.operations.runs import RunOptions
from goatherd.rotation.events import Report
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """What was destroyed, and which private keys the store still holds.

    Attributes:
        report: The versions that were destroyed, marked for later destruction, or kept.
        keys: Which stored version holds which private keys, after the operation.
    """

    report: Report
    keys: KeyInventory


async def read_key_inventory(store: Store, policy: Policy) -> KeyInventory:
    """Return which stored version holds which private keys, and which of them `retire` would destroy.

    Args:
        store: The open store.
        policy: How long a private key is kept after its root was replaced (`grace`).

    Raises:
        ProviderError, IdentityError: The identity cannot be read.
    """
    _, document = await store.read()
    return await take_key_inventory(store.provider, store.secret_id, document, policy.grace)


async def retire(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    confirmed: bool = False,
    **options: Unpack[RunOptions],
) -> Retirement:
    """Destroy old private keys whose grace period has ended. The public keys of these roots stay trusted.

    Args:
        store, org, options: As for `goatherd.rotate`.
        nodes: Servers whose clocks and identities are compared with the store's. No server need be listed.
        policy: How long a private key is kept after it was replaced (`Policy.grace`).
        confirmed: Must be true, since destroyed keys cannot be recovered. `status` lists them before.

    Raises:
        UnconfirmedError: `confirmed` is false. Nothing was destroyed.
        IllegalStepError: A rotation is in progress.
        StoreWentBackError: A server has used a later identity than the store holds. Nothing was destroyed.
        RotationError, ProviderError, IdentityError: As `goatherd.rotation.rotator.Rotator.retire`.
    """
    if confirmed is not True:
        raise UnconfirmedError("destroying private keys was not confirmed; nothing was destroyed")
    async with open_cluster(store, nodes, policy, org) as (opened, clients, policy):
        asked = {"grace": policy.grace}
        report = await run_rotation(
            Rotator.retire, opened, clients, policy, org, asked, command="retire", waits_for_servers=False, **options
        )
        return Retirement(report=report, keys=await read_key_inventory(opened, policy))
