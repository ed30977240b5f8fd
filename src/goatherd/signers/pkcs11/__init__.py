"""A key in a PKCS#11 token, such as a hardware security module, as a signer. Needs the extra ``pkcs11``.

- `signer`: the class `PKCS11Signer`.
- `library`: loads the token's library, and calls it from one thread.
- `address`: parses ``pkcs11:token=…;object=…`` (RFC 7512), and writes the policy that `goatherd policy` prints.
"""
