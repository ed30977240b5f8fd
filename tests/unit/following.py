"""The trust of a GoatDB client in session commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from goatherd.identity.session_commits import claims_root
from goatherd.wire.commit import Commit


@dataclass
class Client:
    """Handles session commits as GoatDB's client does: each is looked at once, and only if it is a new leaf."""

    roots: set[str]
    held: dict[str, Commit] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)

    def take(self, commits: Sequence[Commit]) -> None:
        fresh = [commit for commit in {commit.id: commit for commit in commits}.values() if commit.id not in self.held]
        for commit in fresh:
            self.held[commit.id] = commit
            self.parents.update(commit.parents)
        for commit in fresh:
            if commit.id not in self.parents and commit.session in self.roots:
                self.sessions.add(commit.key)
                if claims_root(commit):
                    self.roots.add(commit.key)
