"""Google Secret Manager on this machine, for tests: no emulator models aliases and etags, so here is one that does.

A real gRPC server with Google's own messages, over TLS with an authority of its own, so that the official client is
used as it is, with nothing but an endpoint::

    with FakeSecretManager() as fake:
        provider, secret_id = open_provider(f"gcp://goatherd-testing/root?endpoint={fake.endpoint}")

- `server`: `FakeSecretManager`, the server: rights, quotas, failures on demand.
- `service`: what the service does, with where that is written.
- `authority`: the certificates.
"""

from tests.fakes.gcp_fake.authority import trust
from tests.fakes.gcp_fake.server import ACCESS, READ, WRITE, Failure, FakeSecretManager
from tests.fakes.gcp_fake.service import SecretManager, StatusError

__all__ = ["ACCESS", "READ", "WRITE", "Failure", "FakeSecretManager", "SecretManager", "StatusError", "trust"]
