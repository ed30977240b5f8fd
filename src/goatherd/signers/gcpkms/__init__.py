"""A key version of Google Cloud KMS as a signer, over the official client. Needs the extra ``gcp``.

- `signer`: the class `GCPKMSSigner`.
- `address`: parses ``gcpkms://PROJECT/LOCATION/RING/KEY/VERSION``, and writes the grants that `goatherd policy` prints.
"""
