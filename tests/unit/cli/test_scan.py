"""`goatherd scan` finds keys in trees, images and git histories, and never prints one."""

from __future__ import annotations

import asyncio
import bz2
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from goatherd.cli.main import EXIT_FINDINGS, EXIT_KEY_FOUND, EXIT_USAGE
from goatherd.cli.text.scan import scan_lines
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.operations import git_history
from goatherd.operations import scan as scan_operation
from goatherd.operations.identity_store import Store
from goatherd.operations.live_keys import compare_with_store
from goatherd.providers.memory import MemorySecretProvider

from .conftest import Goatherd, Result, Serving, secrets_in

NOW_MS = 1_790_000_000_000
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


@pytest.fixture
def settings(goatherd: Goatherd, store: str, tmp_path: Path) -> bytes:
    """Return a settings.json with the current root's key; apart from it, only the store holds the key."""
    assert goatherd("init", "--provider", store).code == 0
    assert goatherd("export", "settings.json", "--provider", store).code == 0
    content = (tmp_path / "settings.json").read_bytes()
    (tmp_path / "settings.json").unlink()
    return content


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/README").write_text("nothing\n")
    return tmp_path / "tree"


def scan(goatherd: Goatherd, tree: Path, *more: str) -> Result:
    """Run the scan, and check that its output contains no key."""
    result = goatherd("scan", str(tree), *more)
    keys = secrets_in(tree.parent)
    assert keys
    assert not [key for key in keys if key in result.out + result.err]
    return result


def pack(members: dict[str, bytes], *, compressed: bool) -> bytes:
    """Return a tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if compressed else "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def pack_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def git(directory: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    command = ["git", *who, "-C", str(directory), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_tree_without_a_key_is_clean(goatherd: Goatherd, tree: Path, settings: bytes) -> None:
    result = scan(goatherd, tree)
    assert (result.code, result.out) == (0, "searched 1 file and 0 git objects: no private key\n")


def test_a_key_in_a_file_is_found_and_known_to_be_live(
    goatherd: Goatherd, tree: Path, settings: bytes, store: str
) -> None:
    (tree / "deep/notes.txt").write_bytes(b"# kept\n\n" + settings)
    result = scan(goatherd, tree)
    assert result.code == EXIT_KEY_FOUND
    assert "deep/notes.txt:" in result.out
    assert "Whether a key is live is not known" in result.out
    found = scan(goatherd, tree, "--provider", store, "--json").json
    (one,) = found["findings"]
    shown = goatherd("show", "--provider", store, "--json").json["current"]
    assert (one["inStore"], one["live"]) == ("current root", True)
    assert (one["root"], one["fingerprint"]) == (shown["id"], shown["fingerprint"])


def test_the_advice_covers_every_live_key(goatherd: Goatherd, tree: Path, settings: bytes, store: str) -> None:
    first = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    (tree / "before.json").write_bytes(settings)
    alone = scan(goatherd, tree, "--provider", store)
    assert f"LIVE: {first}. Others may have read the key: goatherd revoke {first}\n" in alone.out
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    second = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    assert goatherd("export", str(tree / "after.json"), "--provider", store).code == 0
    both = " ".join(sorted((first, second)))
    result = scan(goatherd, tree, "--provider", store)
    assert (
        f"LIVE: {both}. Others may have read the keys; revoke each of these roots: goatherd revoke ID\n" in result.out
    )


def test_a_key_of_another_cluster_is_not_live(goatherd: Goatherd, tree: Path, settings: bytes, tmp_path: Path) -> None:
    (tree / "settings.json").write_bytes(settings)
    other = f"file://{tmp_path}/other/root"
    assert goatherd("init", "--provider", other).code == 0
    result = scan(goatherd, tree, "--provider", other)
    assert (result.code, "not trusted\n" in result.out, "LIVE" in result.out) == (EXIT_KEY_FOUND, True, False)


def compare_with(document: IdentityDocument, tree: Path) -> scan_operation.ScanReport:
    """Return what a scan reports if the store holds this identity."""
    report = scan_operation.scan_paths([tree], with_history=False)

    async def compare() -> None:
        async with MemorySecretProvider() as provider:
            await provider.create("root", encode_document(document))
            await compare_with_store(report, Store(provider=provider, secret_id="root", org="localhost", name="memory"))

    asyncio.run(compare())
    return report


def test_of_a_key_that_no_version_lists_nothing_is_claimed_without_servers(tree: Path) -> None:
    """A root that has left the identity, and a user's session, are trusted because of commits in /sys/sessions."""
    root, other = (OwnedSession.generate(session_id=one, owner="root", now_ms=NOW_MS) for one in ("root-a", "root-b"))
    user = OwnedSession.generate(session_id="session-u", owner="user", now_ms=NOW_MS)
    document = create_document(root, NOW_MS)

    def describe(key: OwnedSession, *, pruned: int) -> tuple[str | None, bool | None, str]:
        (tree / "session.json").write_text(json.dumps(key.to_secret_json()))
        report = compare_with(replace(document, pruned=pruned), tree)
        (one,) = report.findings
        return one.in_store, one.is_live, scan_lines(report)[-1]

    assert describe(root, pruned=1)[:2] == ("current root", True)
    assert describe(other, pruned=0)[:2] == ("not trusted", False)
    for key, pruned in ((other, 1), (user, 0)):
        in_store, is_live, line = describe(key, pruned=pruned)
        assert (in_store, is_live) == ("not listed", None)
        assert "is not known: servers can trust user sessions, and roots that were removed from the identity" in line


@pytest.mark.slow
def test_a_root_that_has_left_the_identity_is_known_to_be_live_and_is_revoked(
    goatherd: Goatherd,
    tree: Path,
    settings: bytes,
    store: str,
    tmp_path: Path,
    serve: Callable[..., Serving],
    apart: None,
) -> None:
    url = serve("--data", str(tmp_path / "data"), "--provider", store).url
    cluster, leaked = ("--provider", store, "--node", url), json.loads(settings)["currentSession"]
    while not goatherd("status", *cluster, "--json").json["identity"]["prunedRoots"]:
        assert goatherd("rotate", *cluster).code == 0
    (tree / "settings.json").write_bytes(settings)
    (tree / "bare.json").write_text(json.dumps(leaked["privateKey"]))
    stranger = OwnedSession.generate(session_id="root-b", owner="root", now_ms=NOW_MS)
    (tree / "stranger.json").write_text(json.dumps(stranger.to_secret_json()))

    def judge(*more: str) -> dict[str, tuple[str | None, bool | None, bool]]:
        found = scan(goatherd, tree, *more, "--json").json["findings"]
        assert {one["root"] for one in found} <= {leaked["id"], stranger.id, None}
        return {Path(one["path"]).stem: (one["inStore"], one["live"], bool(one["acceptedBy"])) for one in found}

    former = ("former root", True, True)
    assert judge(*cluster) == {"settings": former, "bare": former, "stranger": ("not listed", False, False)}
    advice = f"LIVE: {leaked['id']}. Others may have read the key: goatherd revoke {leaked['id']}"
    assert advice in scan(goatherd, tree, *cluster).out
    # Either source is enough: the older versions of the secret, or the server alone.
    assert judge("--provider", store)["bare"] == ("former root", True, False)
    assert judge("--node", url) == {
        "settings": (None, True, True),
        "bare": (None, True, True),
        "stranger": (None, None, False),
    }
    # A server that does not answer may trust the stranger.
    assert judge(*cluster, "--node", "http://127.0.0.1:1")["stranger"] == ("not listed", None, False)
    status = goatherd("status", "--roots", *cluster)
    assert f"{leaked['id']}  trusted, not listed" in status.out
    assert goatherd("status", *cluster, "--json").json["unlistedRoots"] == [leaked["id"]]

    assert goatherd("revoke", leaked["id"], "--reason", "leaked", "--yes", *cluster).code == 0
    assert judge(*cluster)["settings"] == ("revoked root", False, False)


def test_a_live_key_with_no_id_beside_it_is_named_by_the_id_in_the_store(tree: Path) -> None:
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=NOW_MS)
    (tree / "key.json").write_text(json.dumps(root.to_secret_json()["privateKey"]))
    assert scan_lines(compare_with(create_document(root, NOW_MS), tree))[-1].endswith(f"goatherd revoke {root.id}")


@pytest.mark.parametrize("compressed", [False, True])
def test_the_layers_of_a_saved_image_are_searched(
    goatherd: Goatherd, tree: Path, settings: bytes, compressed: bool
) -> None:
    layer = pack({"srv/goatdb/localhost/settings.json": settings}, compressed=compressed)
    image = pack({"manifest.json": b"[]", "blobs/sha256/1f": layer}, compressed=False)
    (tree / "image.tar").write_bytes(image)
    (tree / "blobs").write_bytes(gzip.compress(layer))
    result = scan(goatherd, tree)
    assert result.code == EXIT_KEY_FOUND
    assert "image.tar!blobs/sha256/1f!srv/goatdb/localhost/settings.json:" in result.out
    assert "tree/blobs!srv/goatdb/localhost/settings.json:" in result.out
    assert "1 private key in 2 places" in result.out


@pytest.mark.parametrize(
    "member", [f"objects/ab/{'0' * 38}", f"objects/pack/pack-{'0' * 40}.pack", f"objects/ab/{'0' * 62}"]
)
def test_a_git_history_in_an_image_is_not_clean(goatherd: Goatherd, tree: Path, settings: bytes, member: str) -> None:
    """`COPY . .` puts the history there; git compresses its objects, so a search of the members does not find a key in
    it."""
    content = b"PACK and so on" if member.endswith(".pack") else zlib.compress(b"x")
    members = {f"app/.git/{member}": content, f"app/.git/{member.replace('0', '1')}": content, "app/server.ts": b"z"}
    for name, layer in (("image.tar", pack(members, compressed=True)), ("image.zip", pack_zip(members))):
        (tree / name).write_bytes(layer)
        result = scan(goatherd, tree)
        assert result.code == EXIT_FINDINGS
        assert result.out.count(f"{name}!app/.git: a git history in an archive") == 1
        assert scan(goatherd, tree, "--no-history").code == 0
        (tree / name).unlink()


def test_files_that_another_program_has_named_by_their_digest_are_searched(
    goatherd: Goatherd, tree: Path, settings: bytes
) -> None:
    members = {f"cas/objects/ab/{'c' * 38}": settings}
    for name, layer in (("cas.tar", pack(members, compressed=True)), ("cas.zip", pack_zip(members))):
        (tree / name).write_bytes(layer)
        for options in ([], ["--no-history"]):
            assert scan(goatherd, tree, *options).code == EXIT_KEY_FOUND
        (tree / name).unlink()


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
def test_files_that_bzip2_or_xz_has_compressed_are_searched(
    goatherd: Goatherd, tree: Path, settings: bytes, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(pack({"a": bytes(300_000), "settings.json": settings}, compressed=False))
    (tree / "image.tar.packed").write_bytes(packed)
    (tree / "two").write_bytes(compress(b"") + bytes(8) + compress(settings))
    (tree / "three").write_bytes(compress(b"nothing\n"))
    result = scan(goatherd, tree)
    assert result.code == EXIT_KEY_FOUND
    assert "image.tar.packed!settings.json:" in result.out
    assert "tree/two:" in result.out
    assert "searched 5 files" in result.out
    assert "not searched" not in result.out

    (tree / "two").write_bytes(compress(b"nothing") + b"and more")
    (tree / "image.tar.packed").write_bytes(compress(b"nothing" * 1000)[:-20])
    (tree / "three").write_bytes(packed[:40] + bytes(100))
    result = scan(goatherd, tree)
    assert result.code == EXIT_FINDINGS
    for name in ("two", "image.tar.packed", "three"):
        assert f"{name}: cannot be unpacked: " in result.out


def test_zip_archives_are_searched(
    goatherd: Goatherd, tree: Path, settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = pack_zip({"app/": b"", "app/settings.json": settings}, zipfile.ZIP_STORED)
    (tree / "app.jar").write_bytes(pack_zip({"readme": b"nothing", "inner.war": inner}))
    result = scan(goatherd, tree)
    assert result.code == EXIT_KEY_FOUND
    assert "app.jar!inner.war!app/settings.json:" in result.out
    assert "not searched" not in result.out

    with monkeypatch.context() as patched:
        patched.setattr(scan_operation, "_MEMORY", len(settings) - 1)
        result = scan(goatherd, tree)
    assert (result.code, "app.jar!inner.war: zip archives of more than" in result.out) == (EXIT_FINDINGS, True)

    with monkeypatch.context() as patched:
        outer = pack_zip({"inner.war": inner}, zipfile.ZIP_STORED)
        (tree / "app.jar").write_bytes(outer)
        patched.setattr(scan_operation, "_MEMORY", len(outer))
        result = scan(goatherd, tree)
    assert (result.code, "app.jar!inner.war: zip archives of more than" in result.out) == (EXIT_FINDINGS, True)

    (tree / "app.jar").write_bytes(pack_zip({"a": settings}, zipfile.ZIP_BZIP2))
    result = scan(goatherd, tree)
    assert (result.code, "app.jar!a: encrypted, or not compressed with deflate" in result.out) == (EXIT_FINDINGS, True)
    damaged = bytearray(pack_zip({"a": b"nothing at all", "b": b"something"}, zipfile.ZIP_STORED))
    damaged[damaged.index(b"nothing")] ^= 1
    (tree / "app.jar").write_bytes(damaged)
    result = scan(goatherd, tree)
    assert (result.code, "app.jar!a: cannot be unpacked" in result.out) == (EXIT_FINDINGS, True)
    assert "searched 2 files" in result.out
    (tree / "app.jar").write_bytes(inner[:-30])
    assert scan(goatherd, tree).code == EXIT_FINDINGS


def test_xz_may_use_only_so_much_memory(
    goatherd: Goatherd, tree: Path, settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "small.xz").write_bytes(lzma.compress(b"nothing"))
    assert scan(goatherd, tree).code == 0
    monkeypatch.setattr(scan_operation, "_MEMORY", 1 << 20)
    result = scan(goatherd, tree)
    assert (result.code, "small.xz: cannot be unpacked: Memory usage limit" in result.out) == (EXIT_FINDINGS, True)


@pytest.mark.parametrize("head", scan_operation._PACKED)
def test_a_format_that_cannot_be_unpacked_is_not_clean(
    goatherd: Goatherd, tree: Path, settings: bytes, head: bytes
) -> None:
    (tree / "layer").write_bytes(head + bytes(60))
    result = scan(goatherd, tree)
    assert (result.code, "layer: compressed with " in result.out) == (EXIT_FINDINGS, True)


def test_what_cannot_be_searched_is_not_clean(goatherd: Goatherd, tree: Path, settings: bytes) -> None:
    (tree / "layer.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(60))
    (tree / "cut.tar.gz").write_bytes(pack({"a": settings * 20}, compressed=True)[:-200])
    result = scan(goatherd, tree)
    assert result.code in (EXIT_FINDINGS, EXIT_KEY_FOUND)
    assert "cut.tar.gz" in result.out
    assert "layer.zst: compressed with Zstandard" in result.out
    (tree / "cut.tar.gz").unlink()
    assert scan(goatherd, tree).code == EXIT_FINDINGS


def damaged_tar(**members: str) -> bytes:
    """Return a tar archive whose second member has a PAX header with these fields."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, pax in (("a", {}), ("b", {name.replace("_", "."): value for name, value in members.items()})):
            entry = tarfile.TarInfo(name)
            entry.pax_headers = pax
            archive.addfile(entry)
    return packed.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [
        damaged_tar(GNU_sparse_map="0,x"),
        damaged_tar(GNU_sparse_size="x"),
        damaged_tar(size=str(1 << 62)),
        damaged_tar(size=str(1 << 80)),
    ],
    ids=["a map of a sparse file", "the size of a sparse file", "a size", "a larger size"],
)
def test_a_damaged_tar_archive_ends_no_scan(tree: Path, damaged: bytes) -> None:
    (tree / "damaged.tar").write_bytes(damaged)
    report = scan_operation.scan_paths([tree], with_history=False)
    assert report.unsearched[-1].startswith(f"{tree}/damaged.tar: cannot be unpacked: ")


def one_member_tar(content: bytes, *, kind: bytes = tarfile.REGTYPE, **pax: str) -> bytes:
    """Return a tar archive with one file, which has a PAX header with these fields."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a")
        entry.pax_headers = {name.replace("_", "."): value for name, value in pax.items()}
        entry.type, entry.size = kind, len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize(
    "pax", [{}, {"GNU_sparse_size": str(1 << 62), "GNU_sparse_map": f"{1 << 60},1024,{1 << 61},1024"}]
)
def test_a_file_in_a_tar_archive_is_searched_whatever_its_type_and_its_holes(
    tree: Path, settings: bytes, pax: dict[str, str]
) -> None:
    kind = tarfile.REGTYPE if pax else b"Z"
    padded = settings.ljust(2048)[:2048]
    (tree / "one.tar").write_bytes(one_member_tar(padded, kind=kind, **pax))
    report = scan_operation.scan_paths([tree / "one.tar"], with_history=False)
    assert ([one.path for one in report.findings], report.unsearched) == ([f"{tree}/one.tar!a"], [])


def test_a_header_in_a_tar_archive_does_not_fill_the_memory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_operation, "_LONGEST_HEADER", 1 << 20)
    (tree / "one.tar").write_bytes(gzip.compress(one_member_tar(b"", comment="x" * (1 << 21))))
    report = scan_operation.scan_paths([tree / "one.tar"], with_history=False)
    assert report.unsearched == [f"{tree}/one.tar: cannot be unpacked: a header has more than 1 MiB"]


def test_the_files_of_a_tar_archive_that_were_searched_are_forgotten(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "many.tar").write_bytes(pack({str(number): b"x" for number in range(100)}, compressed=True))
    kept: list[int] = []
    open_member = scan_operation._open_member

    def count_kept(archive: Any, member: tarfile.TarInfo) -> IO[bytes] | None:
        kept.append(len(archive.members))
        return open_member(archive, member)

    monkeypatch.setattr(scan_operation, "_open_member", count_kept)
    assert scan_operation.scan_paths([tree / "many.tar"], with_history=False).files == 100
    assert kept == [1] * 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a file that no user can read")
def test_a_file_that_cannot_be_read_is_reported_with_the_systems_reason() -> None:
    report = scan_operation.scan_paths([Path("/proc/self/mem")], with_history=False)
    assert report.unsearched == ["/proc/self/mem: Input/output error"]


def test_a_member_of_a_zip_archive_without_a_name_is_searched(tree: Path) -> None:
    (tree / "a.zip").write_bytes(pack_zip({"X": b"y"}).replace(b"X", b"\0"))
    report = scan_operation.scan_paths([tree], with_history=False)
    assert (report.files, report.unsearched) == (2, [])


def test_a_key_that_lies_across_two_windows_is_found_once(
    goatherd: Goatherd, tree: Path, settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_operation, "_WINDOW", 70_000)
    before = b"a line of a long log\n" * 10_000
    for cut in (69_000, 70_000 - len(settings) // 2, 139_990):
        (tree / "log").write_bytes(before[:cut] + settings + before)
        (one,) = scan(goatherd, tree, "--json").json["findings"]
        assert one["isSettings"]
        where = settings.index(b'"d"')
        assert one["line"] == (before[:cut] + settings[:where]).count(b"\n") + 1


@pytest.mark.slow
@needs_git
def test_a_key_is_found_in_a_git_history_also_when_no_branch_has_it(
    goatherd: Goatherd, tree: Path, settings: bytes, tmp_path: Path
) -> None:
    git(tree, "init")
    (tree / "deep/settings.json").write_bytes(settings)
    git(tree, "add", ".")
    git(tree, "commit", "-m", "first")
    first = git(tree, "rev-parse", "HEAD")
    git(tree, "rm", "deep/settings.json")
    git(tree, "commit", "-m", "second")
    (one,) = scan(goatherd, tree, "--json").json["findings"]
    assert (one["commit"], one["path"]) == (first, "deep/settings.json")
    assert one["object"] == git(tree, "rev-parse", f"{first}:deep/settings.json")
    assert scan(goatherd, tree, "--no-history").code == 0

    bare = tmp_path / "bare"
    git(tmp_path, "clone", "--bare", str(tree), str(bare))
    assert [each["commit"] for each in scan(goatherd, bare, "--json").json["findings"]] == [first]

    git(tree, "checkout", "--orphan", "clean")
    git(tree, "commit", "-m", "anew")
    git(tree, "branch", "-D", "main")
    git(tree, "reflog", "expire", "--expire=now", "--all")
    (left,) = scan(goatherd, tree, "--json").json["findings"]
    assert (left["commit"], left["path"]) == (None, f"object {left['object']}")


@needs_git
def test_a_key_that_is_only_staged_or_in_a_message_is_found(goatherd: Goatherd, tree: Path, settings: bytes) -> None:
    git(tree, "init")
    git(tree, "add", ".")
    git(tree, "commit", "-m", settings.decode())
    assert "(commit message):" in scan(goatherd, tree).out
    commit = git(tree, "rev-parse", "HEAD")
    (one,) = scan(goatherd, tree, "--json").json["findings"]
    assert (one["commit"], one["object"]) == (commit, commit)
    (tree / "staged.json").write_bytes(settings)
    git(tree, "add", "staged.json")
    (tree / "staged.json").unlink()
    paths = {each["path"] for each in scan(goatherd, tree, "--json").json["findings"]}
    assert "staged.json" in paths


@needs_git
def test_a_repository_that_git_cannot_read_is_not_clean(goatherd: Goatherd, tree: Path, settings: bytes) -> None:
    git(tree, "init")
    (tree / ".git/HEAD").write_text("broken\n")
    result = scan(goatherd, tree)
    assert (result.code, "its git history: git reported:" in result.out) == (EXIT_FINDINGS, True)


@needs_git
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="here, the names of the objects are written to a file")
def test_a_git_history_is_searched_where_nothing_can_be_written(
    goatherd: Goatherd, tree: Path, settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tree, "init")
    git(tree, "add", ".")
    git(tree, "commit", "-m", settings.decode())

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert scan(goatherd, tree).code == EXIT_KEY_FOUND


@needs_git
def test_a_repository_for_which_no_process_can_be_started_is_not_clean(
    goatherd: Goatherd, tree: Path, settings: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tree, "init")
    git(tree, "add", ".")
    git(tree, "commit", "-m", "first")
    start = subprocess.Popen

    def refuse(command: list[str], *arguments: Any, **options: Any) -> Any:
        if "--buffer" in command:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return start(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    result = scan(goatherd, tree)
    assert (result.code, "its git history: git cannot be run: Too many open files" in result.out) == (
        EXIT_FINDINGS,
        True,
    )


@needs_git
def test_a_repository_s_configuration_starts_no_program(
    goatherd: Goatherd, tree: Path, settings: bytes, tmp_path: Path
) -> None:
    """SECURITY: a repository to be scanned may be an attacker's."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\nexit 0\n")
    trap.chmod(0o755)
    git(tree, "init")
    (tree / "settings.json").write_bytes(settings)
    (tree / ".gitattributes").write_text("* diff=trap filter=trap\n")
    git(tree, "add", ".")
    git(tree, "commit", "-m", "first")
    for name in ("core.fsmonitor", "gpg.program", "diff.trap.textconv", "diff.trap.command", "filter.trap.smudge"):
        git(tree, "config", name, str(trap))
    for name, value in (("log.showSignature", "true"), ("diff.external", str(trap)), ("core.pager", str(trap))):
        git(tree, "config", name, value)
    assert scan(goatherd, tree).code == EXIT_KEY_FOUND
    assert not (tmp_path / "sprung").exists()


@needs_git
@pytest.mark.parametrize("missing", ["GIT_NO_LAZY_FETCH", "GIT_ALLOW_PROTOCOL"])
def test_a_partial_clone_starts_no_program_to_fetch_what_is_missing(tmp_path: Path, missing: str) -> None:
    """SECURITY: one of both variables is enough; git before 2.45 knows only GIT_ALLOW_PROTOCOL."""
    (source := tmp_path / "source").mkdir()
    git(source, "init")
    (source / "file").write_text("content\n")
    git(source, "add", ".")
    git(source, "commit", "-m", "first")
    git(source, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--no-checkout", "--filter=blob:none", source.as_uri(), "partial")
    git(tmp_path / "partial", "config", "remote.origin.uploadpack", f"touch {tmp_path}/sprung; git-upload-pack")
    environ = {name: value for name, value in git_history._git_environ().items() if name != missing}
    fetched = subprocess.run(
        git_history._git_command(tmp_path / "partial", "cat-file", "-p", "HEAD:file"), env=environ, capture_output=True
    )
    assert fetched.returncode != 0
    assert not (tmp_path / "sprung").exists()


def test_a_sarif_document_names_the_file_and_the_line(
    goatherd: Goatherd, tree: Path, settings: bytes, store: str
) -> None:
    (tree / "settings.json").write_bytes(settings)
    result = scan(goatherd, tree, "--sarif", "--provider", store)
    document: dict[str, Any] = json.loads(result.out)
    (run,) = document["runs"]
    (one,) = run["results"]
    place = one["locations"][0]["physicalLocation"]
    assert (document["version"], result.code) == ("2.1.0", EXIT_KEY_FOUND)
    assert one["ruleId"] == run["tool"]["driver"]["rules"][0]["id"]
    assert place["artifactLocation"]["uri"].endswith("tree/settings.json")
    assert place["region"]["startLine"] >= 1
    assert (one["level"], "current root (LIVE)" in one["message"]["text"]) == ("error", True)
    assert goatherd("scan", str(tree), "--sarif", "--json").code == EXIT_USAGE


@pytest.mark.parametrize(
    "name", ["copy #2 of settings.json", "100%41.json", "a:b?.json", "é.json", os.fsdecode(b"\xff.json")]
)
def test_the_file_in_a_sarif_document_is_a_uri(goatherd: Goatherd, tree: Path, settings: bytes, name: str) -> None:
    (tree / name).write_bytes(settings)
    (one,) = json.loads(scan(goatherd, tree, "--sarif").out)["runs"][0]["results"]
    parts = urlsplit(one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])
    assert (parts.scheme, parts.query, parts.fragment) == ("", "", "")
    assert os.fsdecode(unquote_to_bytes(parts.path)) == str(tree / name)


def test_a_link_or_a_pipe_that_is_named_is_searched(goatherd: Goatherd, tree: Path, settings: bytes) -> None:
    (tree / "settings.json").write_bytes(settings)
    (tree / "link").symlink_to(tree / "settings.json")
    (tree / "directory").symlink_to(tree / "deep")
    result = scan(goatherd, tree / "link")
    assert (result.code, f"{tree}/link:" in result.out) == (EXIT_KEY_FOUND, True)
    assert scan(goatherd, tree / "directory").out.startswith("searched 0 files")

    # /dev/fd/N is what a shell hands over for `<(docker save ...)`, and /dev/stdin is a link to it.
    readable, writable = os.pipe()
    try:
        os.write(writable, pack({"layer/settings.json": settings}, compressed=True))
        os.close(writable)
        result = goatherd("scan", f"/dev/fd/{readable}")
    finally:
        os.close(readable)
    assert (result.code, f"/dev/fd/{readable}!layer/settings.json:" in result.out) == (EXIT_KEY_FOUND, True)


def test_a_named_device_is_not_clean(goatherd: Goatherd) -> None:
    result = goatherd("scan", "/dev/null")
    assert (result.code, "not searched: /dev/null: neither a file nor a pipe" in result.out) == (EXIT_FINDINGS, True)


def test_links_and_pipes_in_a_directory_are_not_followed(
    goatherd: Goatherd, tree: Path, settings: bytes, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(settings)
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "loop").symlink_to(tree)
    os.mkfifo(tree / "pipe")
    assert scan(goatherd, tree).code == 0


def test_a_path_that_does_not_exist_is_named_and_the_others_are_searched(
    goatherd: Goatherd, tree: Path, tmp_path: Path
) -> None:
    result = goatherd("scan", str(tmp_path / "nowhere"), str(tree))
    assert (result.code, f"not searched: {tmp_path}/nowhere: does not exist" in result.out) == (EXIT_FINDINGS, True)
    assert goatherd("scan", str(tmp_path / "nowhere"), str(tree), "--json").json["files"] > 0
