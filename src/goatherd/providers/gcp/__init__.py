"""Google Secret Manager as a store, over Google's asynchronous client. Needs the extra ``gcp``.

- `provider`: `GCPSecretProvider`, which stores Goatherd's versions and labels as Google's versions and aliases.
- `journal`: the notes on its writes that the provider keeps in a secret's annotations.
- `client`: the SDK's client, with one method for each API call, and the checks of its answers.
- `connection`: credentials and the gRPC channel, which the signer `goatherd.signers.gcpkms` uses, too.
- `problem`: the translation of the SDK's errors.
- `address`: ``gcp://PROJECT/SECRET?option=…`` and the service's resource names.
- `permissions`: the exact IAM permissions for a server, a rotator and an administrator.
"""
