"""A server process that treats its settings.json as GoatDB 0.5.1 does, and has none of Goatherd's endpoints.

It is Goatherd's own server in file-settings mode behind a filter: what GoatDB does not have is 404, and the file is
read, created, extended and rewritten as docs/reference/goatdb-formats.md#settingsjson says, and the private key is
published where GoatDB does it.

    python -m tests.cluster.goatlike --path DIR --port N [--org ID …] [--peer URL …] [faults]

Faults: ``--refuse ID`` ends with 3 when that root shall sign; ``--hang ID`` starts and never answers with it;
``--rename`` replaces the file by rename; ``--deaf`` ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from goatherd.clock import SystemClock
from goatherd.errors import IdentityError
from goatherd.identity.request_binding import RequestGuard
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.ids import new_id
from goatherd.node.server import Server, serve
from goatherd.settings.file import FileSettings

DAY_S = 86_400


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--org", default="localhost")
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--refuse", action="append", default=[])
    parser.add_argument("--hang", action="append", default=[])
    parser.add_argument("--rename", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    return parser.parse_args()


class UpstreamFile:
    """``FileSettings`` of GoatDB: what it reads, which roots it creates, and when it writes."""

    def __init__(self, path: Path, *, by_rename: bool) -> None:
        self.path = path
        self.by_rename = by_rename
        self.leaks = False
        self.tree = self._load()
        self.sessions: dict[str, Any] = {one["id"]: one for one in self.tree.get("trustedSessions", [])}
        self.roots: dict[str, Any] = {one["id"]: one for one in self.tree.get("roots", [])}

    def _load(self) -> dict[str, Any]:
        now_s = SystemClock().now_ms() / 1000
        try:
            tree = json.loads(self.path.read_bytes())
            current = tree["currentSession"]
            assert current["privateKey"]
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            # A new root, silently, and nothing is written yet.
            minted = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=int(now_s * 1000))
            self.leaks = True
            return {"currentSession": minted.to_secret_json(), "roots": []}
        if current["expiration"] - now_s < 15 * DAY_S:
            current["expiration"] = now_s + 30 * DAY_S
            tree["roots"] = [root for root in tree["roots"] if root["id"] != current["id"]] + [current]
            self.leaks = True
            self.path.write_text(json.dumps(tree))
        listed = [root for root in tree.get("roots", []) if root["id"] == current["id"]]
        if not listed or listed[0]["expiration"] != current["expiration"] or "privateKey" in listed[0]:
            self.leaks = True
        return dict(tree)

    @property
    def current(self) -> dict[str, Any]:
        return dict(self.tree["currentSession"])

    def update(self) -> None:
        """Protocol 8.2: the whole file, in place: open, write from the start, cut off."""
        current = self.current
        tree = {
            "currentSession": current,
            "roots": list(self.roots.values()),
            "trustedSessions": [*(s for s in self.sessions.values() if s["id"] != current["id"]), current],
        }
        text = json.dumps(tree, indent=2).encode()
        if self.by_rename:
            new = self.path.with_suffix(".new")
            new.write_bytes(text)
            new.replace(self.path)
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, text)
        os.ftruncate(descriptor, len(text))
        os.close(descriptor)


class Unguarded(RequestGuard):
    """GoatDB's own check of what a request is signed for: none."""

    def check_request(self, *_: Any, **__: Any) -> None:
        pass


class Wall:
    """The server's ASGI application without the endpoints that GoatDB lacks, and with GoatDB's exposure of the key."""

    def __init__(self, server: Server, file: UpstreamFile) -> None:
        self._app = server.app
        self._server = server
        self._file = file

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/goatherd/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        self._server.database().engine.guard = Unguarded(lambda: "")
        sent: list[Any] = []

        async def keep(event: Any) -> None:
            sent.append(event)

        await self._app(scope, receive, keep)
        if scope["type"] == "http" and scope["path"] == "/auth/session" and sent and sent[0]["status"] == 200:
            answer = json.loads(sent[1]["body"])
            self._file.sessions[answer["session"]["id"]] = answer["session"]
            if self._file.leaks:
                answer["roots"] = [
                    self._file.current if root["id"] == self._file.current["id"] else root for root in answer["roots"]
                ]
                sent[1]["body"] = json.dumps(answer).encode()
                sent[0]["headers"] = [pair for pair in sent[0]["headers"] if pair[0] != b"content-length"]
            self._learn_roots()
            self._file.update()
        elif scope["type"] == "http" and scope["path"] == "/batch-sync" and self._learn_roots():
            self._file.update()
        for event in sent:
            await send(event)

    def _learn_roots(self) -> bool:
        roots = {root.id: root.to_json() for root in self._server.database().pool.roots}
        fresh = roots.keys() - self._file.roots.keys()
        for one in fresh:
            self._file.roots[one] = self._file.sessions[one] = roots[one]
        return bool(fresh)


def main() -> None:
    options = arguments()
    file = UpstreamFile(options.path / options.org / "settings.json", by_rename=options.rename)
    if file.current["id"] in options.refuse:
        sys.exit(3)
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if file.current["id"] in options.hang:
        signal.pause()
    # The server reads what was loaded, not the file, which may have been invented. GoatDB has no such file of its own.
    loaded = options.path.with_name(f".{options.path.name}-goatlike.json")
    (options.path / options.org).mkdir(parents=True, exist_ok=True)
    public = {name: value for name, value in file.current.items() if name != "privateKey"}
    roots = {**file.roots, public["id"]: public}
    trusted = [{k: v for k, v in one.items() if k != "privateKey"} for one in file.sessions.values()]
    tree = {"currentSession": file.current, "roots": list(roots.values()), "trustedSessions": trusted}
    loaded.write_text(json.dumps(tree))
    settings = FileSettings(loaded)
    server = Server(options.path, lambda _: settings, org_id=options.org, peers=options.peer, debug=True)
    server.app = Wall(server, file).app  # type: ignore[method-assign]

    def started(url: str) -> None:
        print(json.dumps({"url": url, "signer": file.current["id"]}), flush=True)

    async def run() -> None:
        serving = asyncio.create_task(serve(server, "127.0.0.1", options.port, started=started))
        if options.deaf:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.5, signal.signal, signal.SIGTERM, signal.SIG_IGN)
        await serving

    try:
        asyncio.run(run())
    except IdentityError as error:
        sys.exit(f"{error}")
    finally:
        loaded.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
