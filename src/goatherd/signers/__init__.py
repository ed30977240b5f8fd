"""Signers: plugins that sign with a key that cannot be exported, such as a key in an HSM or a KMS.

- `base`: `Signer`, the interface of a plugin; what a signer declares about its keys; the kinds of keys; the optional
  interfaces.
- `verified`: `open_signer` and `VerifiedSigner`, which makes and verifies every signature.
- `threads`: runs blocking libraries in threads. `policies`: checks the role that is given to `goatherd policy`.
- `local`: a sealed key in a file, the reference implementation. `pkcs11`, `awskms`, `gcpkms`,
  `azurekms`, `transit`: a package each.
"""

from goatherd.signers.base import (
    KeyCreator,
    KeyDeleter,
    KeyDestroyer,
    KeyDisabler,
    KeyKind,
    KeyLister,
    Latency,
    Signer,
    SignerFacts,
    SignerKey,
)
from goatherd.signers.verified import SigningPolicy, VerifiedSigner, open_signer

__all__ = [
    "KeyCreator",
    "KeyDeleter",
    "KeyDestroyer",
    "KeyDisabler",
    "KeyKind",
    "KeyLister",
    "Latency",
    "Signer",
    "SignerFacts",
    "SignerKey",
    "SigningPolicy",
    "VerifiedSigner",
    "open_signer",
]
