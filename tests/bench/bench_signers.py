"""Signatures per second of each signer that is installed on this machine, over the local key in the same run."""

from __future__ import annotations

import base64
import secrets
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from goatherd.signers import KeyCreator, Signer, VerifiedSigner
from goatherd.signers.local import LocalSigner, SealSource
from goatherd.signers.transit.address import parse_uri as parse_transit
from goatherd.signers.transit.signer import TransitSigner
from tests.fakes.openbao import ROOT_TOKEN, BaoServer, find_bao
from tests.fakes.softhsm import PIN, SoftToken, find_softhsm

from . import bare
from .data import Data
from .rows import Row
from .scale import Scale

SIGNATURES: Final = 20


async def run(scale: Scale, _: Data) -> list[Row]:
    """Measure each signer and the local key in turn. Every signature is verified, as it is in use."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goatherd-bench-signers-")))
        local = await _opened(stack, _local(folder))
        others: dict[str, VerifiedSigner] = {}
        if (program := find_bao()) is not None:
            server = stack.enter_context(BaoServer(program))
            server.ask("POST", "sys/mounts/transit", {"type": "transit"})
            address = parse_transit(f"transit://127.0.0.1:{server.port}/transit/bench?tls=off")
            environment = {"VAULT_TOKEN": ROOT_TOKEN}
            others["transit"] = await _opened(stack, TransitSigner(address, environment=environment))
        if (token := _token(stack, folder)) is not None:
            others["pkcs11"] = await _opened(stack, token)
        count = scale.times(5)
        own = [(await _rate(local), _bare_rate()) for _ in range(count)]
        rows = [_row("local", own, "OpenSSL, unverified")]
        for name, signer in others.items():
            rows.append(_row(name, [(await _rate(signer), await _rate(local)) for _ in range(count)], "the local key"))
        return rows


def _row(name: str, pairs: list[tuple[float, float]], limit: str) -> Row:
    rates, bare_rates = zip(*pairs, strict=True)
    return Row(
        name=f"signers/{name}",
        unit="signatures/s",
        size=1,
        samples=rates,
        bare=bare_rates,
        limit=limit,
        more_is_better=True,
    )


def _bare_rate() -> float:
    return 1 / bare.seconds(bare.sign, SIGNATURES)


async def _opened(stack: AsyncExitStack, plugin: Signer) -> VerifiedSigner:
    signer = await stack.enter_async_context(VerifiedSigner(plugin))
    assert isinstance(plugin, KeyCreator)
    await plugin.create_key()
    await signer.sign(b"warm")
    return signer


async def _rate(signer: VerifiedSigner) -> float:
    began = time.perf_counter()
    for number in range(SIGNATURES):
        await signer.sign(f"introduction {number}".encode())
    return SIGNATURES / (time.perf_counter() - began)


def _local(folder: Path) -> LocalSigner:
    environ = {"SEAL": base64.b64encode(secrets.token_bytes(32)).decode()}
    return LocalSigner(folder / "key.json", SealSource.from_text("env:SEAL"), environ=environ)


def _token(stack: AsyncExitStack, folder: Path) -> Signer | None:
    library = find_softhsm()
    if library is None:
        return None
    try:
        from goatherd.signers.pkcs11.address import parse_uri
        from goatherd.signers.pkcs11.signer import PKCS11Signer
    except ImportError:
        return None
    tokens = folder / "tokens"
    tokens.mkdir()
    stack.enter_context(SoftToken(tokens)).make_token("bench")
    environment = {"GOATHERD_PKCS11_MODULE": library, "GOATHERD_PKCS11_PIN": PIN}
    return PKCS11Signer(parse_uri("pkcs11:token=bench;object=bench", environment=environment), environment=environment)
