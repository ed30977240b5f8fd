"""One agent for one data directory, and what it leaves for the next one if it is killed.

What it is: a lock that ends with the process, and a record beside it: which files are the agent's, where in memory they
lie, which child runs. What it is not: it stops no child. Rules: the record is written before what it tells of is done,
and removed last; it holds no key material; blocking, so call it in a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from goatherd.data_directory import check_understood, organization_directories
from goatherd.errors import AgentBusyError, AgentError
from goatherd.files import lock_file, replace_file

LOCK_NAME: Final = ".goatherd-agent.lock"
RECORD_NAME: Final = ".goatherd-agent.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of this machine, told from a later one with the same number.

    Attributes:
        pid: Its number, which is its group's too.
        started: When it started, as the kernel counts, with the machine's boot; empty where that cannot be told.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the process with this number, or None where there is none."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                return None  # it has ended, and nobody has looked after it
            return cls(pid=pid, started=f"{_BOOT.read_text().strip()} {fields[19]}")
        except (OSError, IndexError):
            return None

    def is_running(self) -> bool:
        """Whether that very process is still there."""
        return self.started != "" and Process.of(self.pid) == self


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an agent has done to a data directory.

    Attributes:
        orgs: Organizations whose settings.json it has written.
        memory: The directory in memory, where there is one.
        child: The server that it runs.
        token: By what its lease can be told, so that the next agent here need not wait for it.
    """

    orgs: frozenset[str] = frozenset()
    memory: Path | None = None
    child: Process | None = None
    token: str | None = None

    def to_bytes(self) -> bytes:
        """Return it as text."""
        child = None if self.child is None else {"pid": self.child.pid, "started": self.child.started}
        memory = None if self.memory is None else str(self.memory)
        tree = {"orgs": sorted(self.orgs), "memory": memory, "child": child, "token": self.token}
        return json.dumps(tree, indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read it back.

        Raises:
            ValueError: It is damaged.
        """
        tree: Any = json.loads(raw)
        if not isinstance(tree, Mapping):
            raise ValueError("not an object")
        child, memory, orgs, token = tree.get("child"), tree.get("memory"), tree.get("orgs", []), tree.get("token")
        if not isinstance(orgs, list) or not all(isinstance(org, str) for org in orgs):
            raise ValueError("orgs is not a list of texts")
        return cls(
            orgs=frozenset(orgs),
            memory=Path(memory) if isinstance(memory, str) else None,
            child=Process(pid=int(child["pid"]), started=str(child["started"])) if isinstance(child, Mapping) else None,
            token=token if isinstance(token, str) else None,
        )


class Claim:
    """An agent's hold on a data directory. Enter it, look at `before`, and `note` what is done.

    Args:
        data: The data directory; made where there is none.

    Attributes:
        before: What the last agent left behind; empty after a clean end.
        token: This node's name towards the others; that of the last agent here, if it was killed.
    """

    def __init__(self, data: Path) -> None:
        self._lock_path = data / LOCK_NAME
        self._path = data / RECORD_NAME
        self._data = data
        self._lock: int | None = None
        self._record = Record()
        self.before = Record()
        self.token = secrets.token_hex(16)

    def __enter__(self) -> Self:
        """Take the lock and read what was left.

        Raises:
            AgentBusyError: Another agent has it.
            AgentError: The directory cannot be used, or the record is damaged.
            NewerFormatError: A newer GoatDB has written in it. Nothing was changed.
        """
        if self._data.is_dir():
            for directory in organization_directories(self._data):
                check_understood(directory)
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file(self._lock_path)
        except BlockingIOError as error:
            raise AgentBusyError(f"another agent looks after {self._data}") from error
        except OSError as error:
            raise AgentError(f"cannot use {self._data}: {error.strerror}") from error
        try:
            self.before = self._record = Record.from_bytes(self._path.read_bytes())
            self.token = self.before.token or self.token
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._unlock()
            raise AgentError(
                f"{self._path} cannot be read: {error}",
                hint="It tells what the last agent left behind. See that no server of its runs, and remove it.",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def note(
        self, *, orgs: Iterable[str] | None = None, memory: Path | None = None, child: Process | None = None
    ) -> None:
        """Write down what is there now. `child` is always what is given; the rest stays unless given.

        Raises:
            SettingsError: It cannot be written.
        """
        record = replace(self._record, child=child, token=self.token)
        if orgs is not None:
            record = replace(record, orgs=frozenset(orgs))
        if memory is not None:
            record = replace(record, memory=memory)
        if record != self._record or not self._path.exists():
            replace_file(self._path, record.to_bytes())
            self._record = record

    def forget(self) -> None:
        """Remove the record: nothing is left behind."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._record = Record()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
