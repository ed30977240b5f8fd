"""Make a root, and the commit by which servers come to trust it: introduce_root.py STORE

It writes nothing: `goatherd.rotate` makes the same commit, brings it to every server, and waits until each has it.
"""

import asyncio
import json
import sys

import goatherd

document = asyncio.run(goatherd.read_identity(sys.argv[1]))
new_root = goatherd.generate_session("root")
commit = goatherd.create_session_commit(document.current, new_root)

pool = goatherd.TrustPool(org="localhost", current=document.current, roots=document.roots)
print("trusted before:", new_root.id in pool.root_ids)
pool.add_session_commit(commit)
print("trusted after:", new_root.id in pool.root_ids)
print(json.dumps(goatherd.encode_session(new_root)))
