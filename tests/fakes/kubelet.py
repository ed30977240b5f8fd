"""A fake of the kubelet that mounts Secrets: a directory per state, one link that is swapped, links for the keys.

Follows https://kubernetes.io/docs/concepts/configuration/secret/#mounted-secrets-are-updated-automatically.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from goatherd.providers.versioned_record import RecordedSecret, encode_members


class Kubelet:
    """The volume of one Secret, in a directory that must not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.states = 0
        directory.mkdir()

    def mount(self, data: dict[str, bytes], *, remove: bool = True) -> None:
        self.states += 1
        state = self.directory / f"..2026_11_24_{self.states}"
        state.mkdir()
        for name, value in data.items():
            (state / name).write_bytes(value)
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        before = self.directory / "..data"
        old = before.resolve() if before.is_symlink() else None
        (self.directory / "..data_tmp").symlink_to(state.name)
        (self.directory / "..data_tmp").replace(before)
        if old is not None and remove:
            shutil.rmtree(old)

    def show(self, secret: RecordedSecret) -> None:
        self.mount(encode_members(secret))
