"""Lock a data directory for one agent, and save the agent's state for the next agent in case this one is killed.

The kernel releases the lock when the process ends. The state file beside the lock names the organizations whose
settings.json the agent has written, the directory in memory, and the server process. The module stops no process.
Rules: the state is saved before the action that it describes, and removed last. The state contains no key material.
Every call blocks, so call it in a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from goatherd.errors import AgentBusyError, AgentError, KeyLeakedError, SettingsError
from goatherd.files import OWNER_HINT, lock_file, make_directory, read_with_owner, replace_file
from goatherd.settings.data_directory import check_understood, organization_directories

LOCK_NAME: Final = ".goatherd-agent.lock"
RECORD_NAME: Final = ".goatherd-agent.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of this machine, distinguished from a later one with the same PID by its start time.

    Attributes:
        pid: Process ID, which is also its process group's ID.
        started: Boot ID and start time in the kernel's ticks; empty if unknown.
        session: ID of its session, by which its process group is recognized once it has ended; None if unknown.
        named_by: ID of the user who may have written the file that names the process; None if root has. For this user,
            only a process that the user may signal counts as running.
    """

    pid: int
    started: str
    session: int | None = field(default=None, compare=False)
    named_by: int | None = field(default=None, compare=False)

    @classmethod
    def find_process(cls, pid: int) -> Self | None:
        """Return the running process with this ID, or None if there is none."""
        fields, boot = _read_status(Path(f"/proc/{pid}")), _read_boot()
        if fields is None or boot is None:
            return None
        return cls(pid=pid, started=f"{boot} {fields[19]}", session=int(fields[3]))

    def is_running(self) -> bool:
        """Whether this process is still running."""
        return self.started != "" and Process.find_process(self.pid) == self and may_signal(self.named_by, self.pid)

    def has_group(self) -> bool:
        """Whether this process or another one of its process group is still running.

        No new process gets this ID while the group has members. So a later process with this ID shows that the whole
        group has ended. A group that such a process has left belongs to another session or to another boot.
        """
        if self.is_running():
            return True
        is_this_boot = self.started.partition(" ")[0] == _read_boot()
        is_reused = Process.find_process(self.pid) is not None
        if not is_this_boot or is_reused or self.session is None:
            return False
        return has_members(self.pid, self.session) if self.named_by is None else bool(self.find_group())

    def find_group(self) -> list[int]:
        """Return the PIDs of the running processes of its group."""
        found = [] if self.session is None else find_members(self.pid, self.session)
        return [pid for pid in found if may_signal(self.named_by, pid)]


def may_signal(user: int | None, pid: int) -> bool:
    """Return whether a user may signal a process, as the kernel decides it; True for root (None), or without ``/proc``.

    SECURITY: a compromised server can name any process in a file that it can write. An agent of root must not signal a
    process for this server that the server itself could not (tests/unit/agent/test_child_process.py).
    """
    if user is None:
        return True
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return not Path("/proc/self/status").exists()
    real, _, saved, *_ = next(line for line in lines if line.startswith(b"Uid:")).split()[1:]
    return user in (int(real), int(saved))


def has_members(group: int, session: int) -> bool:
    """Return whether a process of this group and session is running.

    A process that has ended does not count, although its parent may not have waited for it. The parent of an orphan is
    process 1, and in a container this can be the agent itself, which does not wait for it.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it has members, but of other users
    # Without /proc the kernel's answer counts.
    return bool(find_members(group, session)) or not any(Path("/proc").glob("[0-9]*"))


def find_members(group: int, session: int) -> list[int]:
    """Return the PIDs of the running processes of this group and session; none on a system without ``/proc``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        fields = _read_status(process)
        if fields and (int(fields[2]), int(fields[3])) == (group, session):
            found.append(int(process.name))
    return found


def _read_status(process: Path) -> list[str] | None:
    """Return the fields of a process's ``stat`` from its state on; None if the process has ended or is a zombie."""
    try:
        # A process can have any bytes as its name, such as the first 15 bytes of one in UTF-8.
        fields = (process / "stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    except OSError:
        return None
    return None if not fields or fields[0] in "ZX" else fields


def _read_boot() -> str | None:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """What an agent has written and started for a data directory.

    Attributes:
        orgs: Organizations whose settings.json the agent has written.
        memory: The directory in memory that holds the files, if any.
        child: The server process that the agent runs.
        token: Identifies the agent's restart lease, so that the next agent of this directory need not wait for it.
        exposed: Ids of roots whose private keys the server has exposed; kept after a clean end, too.
    """

    orgs: frozenset[str] = frozenset()
    memory: Path | None = None
    child: Process | None = None
    token: str | None = None
    exposed: frozenset[str] = frozenset()

    def check_not_exposed(self, root_id: str) -> None:
        """Check that the server has not exposed the private key of the root with which it is to be started.

        Raises:
            KeyLeakedError: The server has exposed it.
        """
        # SECURITY: the server would expose the key again (tests/unit/agent/test_agent.py).
        if root_id in self.exposed:
            text = f"the server exposed the private key of root {root_id} before, so it is not started with this root"
            raise KeyLeakedError(text, root_ids=(root_id,))

    def to_bytes(self) -> bytes:
        """Encode the state as JSON."""
        child = None if self.child is None else asdict(self.child)
        if child is not None:
            del child["named_by"]
        memory = None if self.memory is None else str(self.memory)
        tree = {"orgs": sorted(self.orgs), "memory": memory, "child": child, "token": self.token}
        if self.exposed:
            tree["exposed"] = sorted(self.exposed)
        return json.dumps(tree, indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes, *, owner: int | None = None) -> Self:
        """Decode a state that `to_bytes` has encoded as JSON.

        Args:
            raw: The JSON.
            owner: ID of the user to whom the file belongs; None if that is root.

        Raises:
            ValueError: The state is damaged.
        """
        tree: Any = json.loads(raw)
        if not isinstance(tree, Mapping):
            raise ValueError("the content must be a JSON object")
        child, memory, orgs, token = tree.get("child"), tree.get("memory"), tree.get("orgs", []), tree.get("token")
        exposed = tree.get("exposed", [])
        for name, texts in (("orgs", orgs), ("exposed", exposed)):
            if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
                raise ValueError(f"{name} must be a list of strings")
        if isinstance(child, Mapping):
            session = child.get("session")
            child = Process(
                pid=int(child["pid"]),
                started=str(child["started"]),
                session=None if session is None else int(session),
                named_by=owner,
            )
        return cls(
            orgs=frozenset(orgs),
            memory=Path(memory) if isinstance(memory, str) else None,
            child=child if isinstance(child, Process) else None,
            token=token if isinstance(token, str) else None,
            exposed=frozenset(exposed),
        )


class DataDirectoryLock:
    """The lock of one agent on its data directory. Enter it, read `before`, and `save` the state before each step.

    Args:
        data: The data directory; created if missing.

    Attributes:
        before: The state that the previous agent left; empty after a clean end.
        token: Identifies this agent as a holder of the restart lease. If the previous agent was killed, this is its
            token; otherwise a new random one.
    """

    def __init__(self, data: Path) -> None:
        self._lock_path = data / LOCK_NAME
        self._path = data / RECORD_NAME
        self._data = data
        self._lock: int | None = None
        self._state = AgentState()
        self.before = AgentState()
        self.token = secrets.token_hex(16)

    def __enter__(self) -> Self:
        """Take the lock and read the state that the previous agent left.

        Raises:
            AgentBusyError: Another agent holds the lock.
            AgentError: The directory cannot be used, or the state file is damaged.
            NewerFormatError: A newer GoatDB has written to the directory. Nothing was changed.
        """
        if self._data.is_dir():
            for directory in organization_directories(self._data):
                check_understood(directory)
        try:
            make_directory(self._data)
        except OSError as error:
            raise AgentError(f"cannot create {self._data}: {error.strerror}") from error
        try:
            self._lock = lock_file(self._lock_path)
        except BlockingIOError as error:
            raise AgentBusyError(f"another agent is already running for {self._data}") from error
        except OSError as error:
            hint = OWNER_HINT if isinstance(error, PermissionError) else None
            raise AgentError(f"cannot open {self._lock_path}: {error.strerror}", hint=hint) from error
        try:
            raw, owner = read_with_owner(self._path)
            self.before = self._state = AgentState.from_bytes(raw, owner=owner)
            self.token = self.before.token or self.token
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self._release_lock()
            raise AgentError(
                f"the agent's state file {self._path} cannot be read: {error}",
                hint="The file names the last agent's server. Check that this server has ended, then remove the file.",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._release_lock()

    def save(
        self,
        *,
        orgs: Iterable[str] | None = None,
        memory: Path | None = None,
        child: Process | None = None,
        exposed: Iterable[str] = (),
    ) -> None:
        """Save the agent's state in the data directory; arguments that are not given keep their saved values.

        So the state may name a server that has ended. `Process` never takes a later process with its PID for it.

        Nothing is written if nothing changes, so that an agent can also start on a full disk after one that was killed.

        Raises:
            SettingsError: The state cannot be written.
        """
        state = replace(
            self._state,
            orgs=self._state.orgs if orgs is None else frozenset(orgs),
            memory=memory or self._state.memory,
            child=child or self._state.child,
            token=self.token,
            exposed=self._state.exposed.union(exposed),
        )
        if state != self._state or not self._path.exists():
            replace_file(self._path, state.to_bytes())
            self._state = state

    def clear(self) -> None:
        """Remove the agent's saved state, except the exposed roots, unless the disk cannot be written."""
        self._state = AgentState(exposed=self._state.exposed)
        with contextlib.suppress(OSError, SettingsError):
            if self._state.exposed:
                replace_file(self._path, self._state.to_bytes())
            else:
                self._path.unlink()

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
