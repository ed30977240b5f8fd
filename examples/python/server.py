"""Serve with an identity from a store: server.py STORE DATA PORT [PEER...]"""

import asyncio
import sys

import goatherd

store, data, port, *peers = sys.argv[1:]
provider, secret_id = goatherd.open_provider(store)
settings = goatherd.CloudSecretSettings(secret_id, provider)
# The same in the words of GoatDB's configuration:
# settings = {"type": "cloud", "cloudConfig": {"provider": "aws", "secretId": "goatdb/root", "region": "eu-west-1"}}
server = goatherd.Server(data, settings_provider=settings, peers=peers)
asyncio.run(goatherd.serve(server, port=int(port), started=lambda url: print(f"serves at {url}", flush=True)))
