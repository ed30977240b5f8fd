"""Signers: plugins that sign with a key that cannot be exported, such as a key in an HSM or a KMS.

- `base`: `Signer`, the interface of a plugin; `KeyCreator`; what a signer declares about itself; and
  `check_role`, which checks the role that is given to `goatherd policy`.
- `verified`: `open_signer`, and `VerifiedSigner`, which verifies each signature that a plugin makes.
- `local`: the reference implementation, which keeps an encrypted key in a file.
- `pkcs11`, `awskms`, `gcpkms`, `azurekms`, `transit`: packages, each with the plugin for one platform.
"""

from goatherd.signers.base import (
    KeyCreator,
    KeyKind,
    Latency,
    Signer,
    SignerFacts,
    SignerKey,
)
from goatherd.signers.verified import SigningPolicy, VerifiedSigner, open_signer

__all__ = [
    "KeyCreator",
    "KeyKind",
    "Latency",
    "Signer",
    "SignerFacts",
    "SignerKey",
    "SigningPolicy",
    "VerifiedSigner",
    "open_signer",
]
