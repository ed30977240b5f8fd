"""Read and change GoatDB's own settings.json: file_settings.py DIRECTORY"""

import asyncio
import sys

import goatherd


async def main(directory: str) -> None:
    document = goatherd.create_identity(goatherd.generate_session("root"))
    await goatherd.FileSettings.create(directory, document)
    async with goatherd.FileSettings(directory) as settings:
        loaded = await settings.load()
        user = goatherd.generate_session("user-1")
        await settings.update(trusted_sessions=[user.session])
        print(f"signs with {loaded.current.id}, trusts {len(settings.settings.trusted)} user session")
    print("written to", settings.path)


asyncio.run(main(sys.argv[1]))
