"""All output of the command line, in every mode, is searched for every private key that the tests used."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from goatherd.wire.base32 import base32_encode

from .conftest import Goatherd, secrets_in

VECTORS = Path(__file__).parents[2] / "vectors"


def forms(secret: str) -> list[str]:
    """Return the encodings in which a private scalar could be printed."""
    raw = base64.urlsafe_b64decode(secret)
    number = int.from_bytes(raw, "big")
    return [
        secret,
        base64.b64encode(raw).decode(),
        raw.hex(),
        raw.hex().upper(),
        f"{number:x}",
        str(number),
        base32_encode(raw),
        repr(raw),
    ]


@pytest.mark.slow
def test_no_private_key_is_in_anything_that_any_command_writes(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    written, secrets = [], set()

    def run(*arguments: str) -> None:
        for mode in ((), ("--json", "--debug")):
            result = goatherd(*arguments, *mode)
            written.extend([result.out, result.err])
            secrets.update(secrets_in(tmp_path))

    here = ("--provider", store)
    nodes = ("--node", "http://127.0.0.1:1")
    run("init", *here)
    for arguments in (["show"], ["versions"], ["status", *nodes], ["doctor", *nodes], ["rotate", "--plan", *nodes]):
        run(*arguments, *here)
    for phase in ("prepared", "published", "activated", "verified"):
        run("rotate", "--to", phase, "--unsafe-without-nodes", *here)
        run("show", *here)
        run("rotate", "--resume", "--to", phase, "--unsafe-without-nodes", *here)
    run("rotate", "--rollback", *here)
    run("rotate", "--unsafe-without-nodes", *here)
    run("rotate", *nodes, "--adoption", "0s", *here)
    run("export", str(tmp_path / "out.json"), *here)
    run("export", str(tmp_path / "out.json"), "--replace", *here)
    source = tmp_path / "goatdb/localhost"
    shutil.copytree(VECTORS / "jsonl", source / "sys")
    shutil.copy(tmp_path / "out.json", source / "settings.json")
    run("migrate", str(source), *here)
    run("migrate", str(source), "--provider", f"file://{tmp_path}/other/root")
    broken = (source / "settings.json").read_text().replace('"sign"', '"sing"').replace('"roots"', '"roofs"')
    (source / "settings.json").write_text(broken[:-40])
    run("migrate", str(source), "--provider", f"file://{tmp_path}/third/root")
    run("retire", "--yes", "--grace", "0s", *here)
    run(
        "serve",
        "--settings",
        str(source / "settings.json"),
        "--data",
        str(tmp_path / "data"),
        "--create",
        "--port",
        "0",
    )
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file() and b"currentSession" in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b'"P-384"', b'"P-256"'))
    for arguments in (["show"], ["status"], ["doctor"], ["rotate", "--plan"], ["export", str(tmp_path / "x.json")]):
        run(*arguments, *here)

    text = "\n".join(written)
    assert len(secrets) >= 4, "the search has something to search for"
    for secret in secrets:
        for form in forms(secret):
            assert form not in text
    assert text.count("error") > 10, "failures were among it"
