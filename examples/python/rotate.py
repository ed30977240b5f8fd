"""Replace the root while the cluster serves: rotate.py STORE NODE..."""

import asyncio
import sys

import goatherd

store, *nodes = sys.argv[1:]
try:
    report = asyncio.run(goatherd.rotate(store, nodes))
except goatherd.GoatherdError as error:
    sys.exit(f"{error.code}: {error}\n{error.hint}")
print(f"{report.current_id} signs in place of {report.from_id}")
