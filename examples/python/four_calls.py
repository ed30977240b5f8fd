"""Get, update, label, restore and delete a secret: four_calls.py STORE"""

import asyncio
import sys

import goatherd


async def main(store: str) -> None:
    provider, secret_id = goatherd.open_provider(store)
    async with provider:
        await provider.create(secret_id, b"first")
        await provider.update_secret(secret_id, await provider.get_secret(secret_id), version_label="stable")
        await provider.update_secret(secret_id, b"second")
        print("current", (await provider.get_secret(secret_id)).reveal())
        stable = await provider.get_secret_version(secret_id, "stable")
        print("stable", stable.reveal())
        await provider.update_secret(secret_id, stable)
        print("restored", (await provider.getSecret(secret_id)).reveal())
        await provider.delete_secret(secret_id)


asyncio.run(main(sys.argv[1]))
