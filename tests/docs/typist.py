"""Types the commands of a page of the documentation into a shell, as a reader would, against live processes.

What is changed before a line is typed, and nothing else: directories of a whole machine (``/srv``, ``/var/log``, …) and
addresses of other machines (``10.0.0.1``) become directories and ports of the test; a command that serves runs in the
background and is waited for; a command that would ask gets ``--yes``, since no reader sits at the terminal. The
configuration files that the page shows are written. What a page has its reader do without a command (press Ctrl-C in
another terminal) is in a comment of the page: ``<!-- typed: kill %2 -->``.
A server may take longer for an answer than commands wait by default.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.deadlines import ANSWER, HANG

ROOT: Final = Path(__file__).parents[2]
ELSEWHERE: Final = frozenset({"aws", "az", "bao", "docker", "gcloud", "kubectl", "make", "pip", "systemctl", "vault"})
"""Programs of platforms, and what would install or test all over again: not typed here, nor is what needs a cluster."""

_SERVE: Final = re.compile(r"goatherd (?:serve|run|door|watch|controller|web)\b(?!.*--(?:explain|once|help))")
_ASKS: Final = re.compile(r"goatherd (?:retire|revoke)\b(?!.*--(?:yes|plan|dry-run))")
_END: Final = "<<the shell is done with "
_READY: Final = {
    **dict.fromkeys(("serve", "door", "web"), re.compile(r"^ready at ", re.MULTILINE)),
    **dict.fromkeys(("run", "watch"), re.compile(r" agent\.up ")),
    "controller": re.compile(r" controller\.(?:planned|acts) "),
}
"""What a command that serves writes when it is ready: a line on standard output, or an event in its log."""
_GOATLIKE_READY: Final = re.compile(r'^\{"url": ', re.MULTILINE)


@dataclass(frozen=True)
class Typed:
    """One command of a page, and what the page shows below it."""

    line: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A configuration file that a page shows."""

    text: str


def steps(page: str) -> list[Typed | File]:
    """Return what a page has its reader do, in order: files to write and commands to type."""
    found: list[Typed | File] = []
    page = re.sub(r"^<!-- typed: (.*) -->$", r"```console\n$ \1\n```", page, flags=re.MULTILINE)
    for kind, text in re.findall(r"^ *```(\w+)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE):
        if kind == "toml" and "project" not in tomllib.loads(text):
            found.append(File(text))
        if kind != "console":
            continue
        for block in re.split(r"^(?=\$ )", text.replace("\\\n", " "), flags=re.MULTILINE):
            if block.startswith("$ "):
                line, *shown = block[2:].rstrip("\n").split("\n")
                found.append(Typed(line.strip(), tuple(shown)))
    return found


def shown_pattern(line: str) -> str:
    """Return a pattern for a line of output that a page shows: ids, numbers, times and … may be others."""
    words = [r"\S+" if re.search(r"[\d…]", word) else re.escape(word) for word in line.split()]
    return r"\s+".join(words)


@dataclass
class Shell:
    """One bash, with the directories and servers of a test in the place of those of a page.

    Attributes:
        home: The directory in which it starts, and which contains the page's directories.
        replace: Text of a page, and what is typed instead.
        environ: More variables.
        typed: Every line with its output, which is printed when a line fails.
    """

    home: Path
    replace: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)

    def __enter__(self) -> Shell:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
        scripts = Path(sys.executable).parent
        environ |= {"PATH": f"{scripts}:{environ['PATH']}", "HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        environ["GOATHERD_TIMEOUT"] = f"{ANSWER.total_seconds():g}s"
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.home,
            env={**environ, **self.environ},
            start_new_session=True,
        )
        self.logs: list[Path] = []
        return self

    def __exit__(self, *_: object) -> None:
        # Servers in the background belong to the shell's session, and end with it.
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        deadline = time.monotonic() + HANG
        while self._group_lives() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._group_lives():
            os.killpg(self.process.pid, signal.SIGKILL)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def told(self, text: str) -> str:
        """Return the text to type for a text of the page."""
        for old, new in self.replace.items():
            text = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\d)", new.replace("\\", r"\\"), text)
        return text

    def run(self, line: str) -> tuple[int, str]:
        """Type one line; return the exit code and the output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            f"{{\n{line}\n}} </dev/null\n__code=$?; echo; echo '{_END}'$__code; (exit $__code)\n".encode()
        )
        self.process.stdin.flush()
        said, deadline = b"", time.monotonic() + 4 * HANG
        while True:
            found = re.search(rf"\n{re.escape(_END)}(\d+)\n".encode(), said)
            if found:
                out = said[: found.start()].decode()
                self.typed.append(f"$ {line}\n{out}[{int(found[1])}]")
                return int(found[1]), out
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not more:
                raise AssertionError(f"no end of: {line}\n{said.decode()}\n\n{self.story}")
            said += more

    @property
    def story(self) -> str:
        """Return what was typed so far, and the output of the servers in the background."""
        return "\n".join([*self.typed, *(f"--- {log.name}\n{log.read_text()}" for log in self.logs if log.exists())])

    def start(self, line: str) -> None:
        """Type a command that serves, in the background, and wait until it does."""
        log = self.home / f"background-{len(self.logs)}.log"
        log.touch()
        self.logs.append(log)
        command = re.sub(r"\s*(?:\d?>\s*\S+\s*)?&\s*$", "", line)
        code, out = self.run(f'{command} >{log} 2>&1 & echo "pid $!"')
        assert code == 0, self.story
        pid = int(out.split("pid ")[1].split()[0])
        words = shlex.split(command, comments=True)
        ready = _READY[words[1]] if words[0] == "goatherd" else _GOATLIKE_READY
        deadline = time.monotonic() + HANG
        while True:
            is_running, text = self.run(f"kill -0 {pid}")[0] == 0, log.read_text()
            assert is_running, f"{line}: it has ended\n{self.story}"
            if ready.search(text):
                return
            assert time.monotonic() < deadline, f"{line}: it does not get ready\n{self.story}"
            time.sleep(0.1)

    def follow(self, page: Sequence[Typed | File]) -> None:
        """Type the commands of a page; each must succeed, or end with the exit code that the page shows."""
        for index, step in enumerate(page):
            if isinstance(step, File):
                (self.home / "goatherd.toml").write_text(self.told(step.text))
                continue
            line = self.told(step.line)
            program = re.split(r"[\s=]", line.removeprefix("("), maxsplit=1)[0]
            if "k8s-service://" in line or program in ELSEWHERE or set(re.findall(r"(?<=\| )\w+", line)) & ELSEWHERE:
                continue
            if _SERVE.match(line):
                self.start(line)
                continue
            if _ASKS.match(line.partition("#")[0]):
                command, mark, note = line.partition("#")
                line = f"{command.rstrip()} --yes {mark}{note}"
            code, out = self.run(line)
            after = page[index + 1] if index + 1 < len(page) else None
            if not (isinstance(after, Typed) and after.line == "echo $?"):
                assert code == 0, self.story
            for shown in step.shown:
                if shown.strip() and not shown.lstrip().startswith(("…", "...")):
                    assert re.search(shown_pattern(shown), out), f"the page shows: {shown}\n{self.story}"
