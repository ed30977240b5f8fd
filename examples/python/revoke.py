"""Revoke the root that signs now, as if it were stolen: revoke.py STORE NODE..."""

import asyncio
import sys

import goatherd


async def main(store: str, nodes: list[str]) -> None:
    stolen = (await goatherd.read_identity(store)).current.id
    await goatherd.revoke(store, nodes, root_id=stolen, reason="laptop stolen", confirmed=True)
    document = await goatherd.read_identity(store)
    print(f"{document.current.id} signs; revoked: {stolen in document.revoked_ids}")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
