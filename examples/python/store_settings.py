"""Read a server's settings from a store, and receive changes: store_settings.py STORE"""

import asyncio
import sys

import goatherd


async def main(store: str) -> None:
    provider, secret_id = goatherd.open_provider(store)
    async with goatherd.CloudSecretSettings(secret_id, provider) as settings:
        loaded = await settings.load()
        print(f"signs with {loaded.current.id}, trusts {len(loaded.roots)} roots, user sessions: {len(loaded.trusted)}")
        settings.subscribe(lambda changed: print(f"now signs with {changed.current.id}"))
        await goatherd.rotate(store, unsafe_without_nodes=True)  # another program, in reality
        await settings.refresh()  # happens every 30 seconds by itself
        print(f"generation {settings.status.generation}, failures {settings.status.failures}")


asyncio.run(main(sys.argv[1]))
