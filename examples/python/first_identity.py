"""Create the first identity of a cluster: first_identity.py STORE"""

import asyncio
import sys

import goatherd

document = asyncio.run(goatherd.init(sys.argv[1]))
print(f"root {document.current.id} in generation {document.generation}")
