"""Signers: the verifying wrapper, the addresses, and the signer in a file."""
