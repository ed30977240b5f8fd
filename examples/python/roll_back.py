"""Roll back a rotation, and restore the previous root after one: roll_back.py STORE NODE..."""

import asyncio
import sys

import goatherd


async def main(store: str, nodes: list[str]) -> None:
    async with goatherd.open_store(store) as opened:
        await goatherd.rotate(opened, nodes, to_phase="activated")
        left = await goatherd.roll_back(opened, nodes, reason="clients complain")
        print(f"rolled back: {left.current_id} signs")
        await goatherd.rotate(opened, nodes)
        restored = await goatherd.restore(opened, nodes)
        print(f"restored: {restored.current_id} signs")
        status = await goatherd.status(opened, nodes)
        print("every server follows:", status.is_in_step)


asyncio.run(main(sys.argv[1], sys.argv[2:]))
