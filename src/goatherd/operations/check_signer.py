"""Check one signer, which holds a private key outside the store, such as in an HSM or a KMS.

The check reads the public key, signs a test text, verifies the signature, and reports what the signer declares about
itself. It creates and changes nothing. GoatDB would accept the signed test text neither as a commit nor as a request,
so the signature cannot be misused.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.crypto import fingerprint
from goatherd.errors import GoatherdError
from goatherd.ids import new_id
from goatherd.operations.store_checks import FAILED, OK, WARNING, Check
from goatherd.signers.base import Latency, SignerFacts, SignerKey
from goatherd.signers.verified import VerifiedSigner, open_signer

SIGNATURES: Final = 3
SLOW: Final = {
    Latency.MEMORY: timedelta(milliseconds=100),
    Latency.DEVICE: timedelta(seconds=1),
    Latency.SERVICE: timedelta(seconds=2),
}
"""The time for a signature from which a signer of each latency class counts as slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerReport:
    """The results of the checks of one signer.

    Attributes:
        scheme: The signer's URI scheme.
        name: The key's name on its platform.
        facts: What the signer declares about itself, such as its region, and whether its key can be exported.
        key: The public key; None if it could not be read.
        seconds: The median duration of a signature, in seconds; None if no signature was made.
        checks: The checks and their results.
    """

    scheme: str
    name: str
    facts: SignerFacts
    key: SignerKey | None
    seconds: float | None
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, object]:
        """Return the signer as a JSON object, without the checks."""
        return {
            "scheme": self.scheme,
            "key": self.name,
            "kind": None if self.key is None else self.key.kind.value,
            "fingerprint": None if self.key is None else fingerprint(self.key.public_key),
            "exportable": self.facts.exportable,
            "latency": self.facts.latency.value,
            "region": self.facts.region,
            "maxTextBytes": self.facts.max_text_bytes,
            "signaturesPerSecond": self.facts.signatures_per_second,
            "seconds": self.seconds,
        }


async def check_signer(uri: str) -> SignerReport:
    """Make every check of a signer and return the results.

    A signer that does not answer is reported as a failed check, and raises no error.

    Args:
        uri: The signer's URI.

    Raises:
        ConfigurationError, PluginNotFoundError, MissingExtraError: The URI is wrong, or its plugin cannot be loaded.
    """
    checks: list[Check] = []
    key: SignerKey | None = None
    seconds: float | None = None
    async with open_signer(uri) as signer:
        facts = signer.facts
        try:
            key = await signer.check_key()
            checks.append(Check("key", OK, f"{key.kind}, fingerprint {fingerprint(key.public_key)}"))
            seconds = await _measure_signature(signer)
            slow = seconds > SLOW[facts.latency].total_seconds()
            text = f"verified; a signature takes {seconds * 1000:.1f} ms"
            hint = "Check the network to the signer, and its load." if slow else ""
            checks.append(Check("signature", WARNING if slow else OK, text, hint))
        except GoatherdError as error:
            checks.append(Check("key" if key is None else "signature", FAILED, str(error), error.hint))
        # A signer rejects a key that can be copied when it reads the key, so without the key nothing is known.
        if key is not None or facts.exportable:
            checks.append(_check_export(facts))
        return SignerReport(
            scheme=signer.scheme, name=signer.name, facts=facts, key=key, seconds=seconds, checks=tuple(checks)
        )


async def _measure_signature(signer: VerifiedSigner) -> float:
    """Sign a few test texts and return the median duration in seconds."""
    clock, taken = SystemClock(), list[float]()
    for _ in range(SIGNATURES):
        began = clock.monotonic()
        await signer.sign(f"goatherd doctor {new_id()}".encode())
        taken.append(clock.monotonic() - began)
    return statistics.median(taken)


def _check_export(facts: SignerFacts) -> Check:
    if facts.exportable:
        return Check(
            "export",
            WARNING,
            "the private key can be copied by a process that can read it",
            "In production, use a signer whose key cannot be exported.",
        )
    return Check("export", OK, "the private key cannot be exported")
