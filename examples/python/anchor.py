"""Create an identity with an anchor in an HSM or a KMS, and renew its working root: anchor.py STORE SIGNER."""

import asyncio
import sys

import goatherd

store, uri = sys.argv[1:]


async def main() -> None:
    async with goatherd.open_signer(uri) as signer:
        document = await goatherd.init(store, anchor=signer, create_key=True)
        print(f"{document.current.id} signs, endorsed by the key in {uri}")
        # No server runs yet. With servers: rotate(store, nodes).
        report = await goatherd.rotate(store, signer=signer, unsafe_without_nodes=True)
        print(f"{report.current_id} signs in place of {report.from_id}")


try:
    asyncio.run(main())
except goatherd.GoatherdError as error:
    sys.exit(f"{error.code}: {error}\n{error.hint}")
