"""A key of Azure Key Vault or Managed HSM as a signer, over the official client. Needs the extra ``azure``.

- `signer`: the class `AzureKMSSigner`.
- `address`: parses ``azurekms://VAULT/KEY/VERSION?option=…``, and writes the role that `goatherd policy` prints.
"""
