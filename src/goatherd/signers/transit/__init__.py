"""The transit engine of Vault and OpenBao as a signer, through the client of the provider ``vault``.

- `signer`: the class `TransitSigner`.
- `address`: parses ``transit://host:port/mount/key?option=…``, and writes the policy that `goatherd policy` prints.
"""
