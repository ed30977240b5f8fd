"""Bring the settings.json of a stopped GoatDB server into a store: migrate.py STORE SETTINGS"""

import asyncio
import sys

import goatherd

migration = asyncio.run(goatherd.migrate(sys.argv[1], sys.argv[2]))
for outcome in migration.outcomes:
    print(f"{outcome.org}: root {outcome.current_id} is {'now' if outcome.is_new else 'already'} in the store")
