"""Replays recorded exchanges of a GoatDB 0.5.1 server against a server of ours and compares.

The list of intended differences is in `test_exchanges`. Rules: the clock stands at the recorded time, the
ids that the recorded server drew are drawn again, and everything else is compared exactly, except what is random by
nature: seeds and bits of a reply's filter (its members are compared instead), and signature, connection and time of a
commit that the server itself made.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from goatherd.cluster.client import INSTANCE_HEADER
from goatherd.errors import DecodeError
from goatherd.identity.session import parse_signature
from goatherd.ids import new_id
from goatherd.node.server import Server
from goatherd.settings.file import FileSettings
from goatherd.wire.bloom import BloomFilter

EXCHANGES = Path(__file__).parent.parent / "exchanges"
ORG = "localhost"
BASE_URL = "http://127.0.0.1:PORT"

Json = dict[str, Any]


class StandingClock:
    """A clock that stands at `at_ms` until a test moves it."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic(self) -> float:
        return self.at_ms / 1000

    async def sleep(self, duration: timedelta) -> None:
        if duration > timedelta(minutes=1):
            await asyncio.Event().wait()  # a watch in the background, which turns no hands
        self.at_ms += round(duration / timedelta(milliseconds=1))


class RecordedIds:
    """Draws the ids that the recorded server drew, then random ones."""

    def __init__(self) -> None:
        self._next: list[str] = []

    def expect(self, ids: Iterable[str]) -> None:
        self._next = list(ids)

    def __call__(self) -> str:
        return self._next.pop(0) if self._next else new_id()


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer."""

    label: str
    at_ms: int
    request: Json
    response: Json

    @property
    def status(self) -> int | None:
        status: int | None = self.response["status"]
        return status

    @property
    def creates_session(self) -> bool:
        return exchange_creates_session({"request": self.request, "response": self.response})

    @property
    def syncs(self) -> bool:
        return (self.request["method"], self.request["path"], self.status) == ("POST", "/batch-sync", 200)

    @property
    def answer(self) -> list[Json]:
        """The recorded elements of a ``/batch-sync`` answer."""
        answer: list[Json] = json.loads(self.response["body"])
        return answer


@dataclass
class Recording:
    """One file of exchanges."""

    name: str
    files_before: Json
    files_after: Json
    exchanges: list[Exchange]
    sessions: Json

    @classmethod
    def load(cls, name: str) -> Recording:
        raw = json.loads((EXCHANGES / f"{name}.json").read_text())
        exchanges: list[Exchange] = []
        times = [_time_of(one) for one in raw["exchanges"]]
        for position, one in enumerate(raw["exchanges"]):
            at = times[position] or next((t for t in times[position:] if t), raw["recordedAtMs"])
            if exchange_creates_session(one):
                at = _creation_time(one)
            exchanges.append(Exchange(one["label"], at, one["request"], one["response"]))
        return cls(name, raw["dataDirBefore"], raw.get("dataDirAfter") or {}, exchanges, raw.get("sessions") or {})

    def write_data(self, directory: Path) -> None:
        """Lay out the data directory as it was before the first exchange."""
        for name, contents in self.files_before.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".json"):
                file.write_text(json.dumps(contents))
            else:
                file.write_bytes(b"".join(b"\n" + _dump(record) + b"\n" for record in contents))

    def commits(self) -> Iterator[Json]:
        """Every commit that occurs anywhere in the recording."""
        for files in (self.files_before, self.files_after):
            for name, records in files.items():
                if name.endswith(".jsonl"):
                    yield from (record for record in records if isinstance(record, dict))


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _time_of(raw: Json) -> int | None:
    """Return the time in the request's signature, if the recorder wrote no time (requests of real clients)."""
    if raw.get("at") is not None:
        return int(raw["at"])
    header = raw["request"]["headers"].get("x-goat-sig")
    if not header:
        return None
    return int(parse_signature(header).data["ts"])


def exchange_creates_session(raw: Json) -> bool:
    request = raw["request"]
    return (request["method"], request["path"], raw["response"]["status"]) == ("POST", "/auth/session", 200)


def _creation_time(raw: Json) -> int:
    expiration: float = json.loads(raw["response"]["body"])["session"]["expiration"]
    return round(expiration * 1000) - 30 * 24 * 3600 * 1000


def make_server(directory: Path, clock: StandingClock, ids: RecordedIds) -> Server:
    """Make a server of ours on a recorded data directory."""
    settings = FileSettings(directory / ORG / "settings.json", clock=clock)
    # The recorded server introduced each session when it was made.
    return Server(directory, settings, clock=clock, base_url=BASE_URL, debug=True, new_id=ids, unused_sessions=0)


@dataclass
class Replay:
    """A server of ours that replaces the recorded one.

    Attributes:
        everything: Every body that our server has answered with.
        kept: Ids that our server holds intentionally and the recorded server did not, by repository.
        dropped: Ids that the recorded server held and ours intentionally does not.
        settling: Whether the recorded server catches up with us in this exchange, so that its filter has another size.
    """

    recording: Recording
    directory: Path
    clock: StandingClock
    ids: RecordedIds
    server: Server
    everything: list[bytes] = field(default_factory=list)
    kept: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    settling: bool = False

    @classmethod
    def start(cls, recording: Recording, directory: Path) -> Replay:
        """Lay out the data and make the server; entering it is the caller's."""
        recording.write_data(directory)
        clock = StandingClock(recording.exchanges[0].at_ms)
        ids = RecordedIds()
        return cls(recording, directory, clock, ids, make_server(directory, clock, ids))

    async def restart(self) -> None:
        """Stop our server and start another on the same data."""
        await self.server.__aexit__(None, None, None)
        self.server = make_server(self.directory, self.clock, self.ids)
        await self.server.__aenter__()

    async def send(self, exchange: Exchange) -> httpx2.Response:
        """Send one recorded request at its time."""
        self.clock.at_ms = exchange.at_ms
        self.ids.expect(self._ids_of(exchange))
        request = exchange.request
        body = request.get("body")
        return await self.request(
            request["method"],
            request["path"],
            {name: value for name, value in request["headers"].items() if name != "content-length"},
            body.encode("utf-8", "surrogatepass") if body else b"",
        )

    async def request(self, method: str, path: str, headers: Json, body: bytes) -> httpx2.Response:
        """Send any request."""
        transport = httpx2.ASGITransport(self.server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            response = await http.request(method, path, headers=headers, content=body)
        self.everything.append(response.content)
        return response

    def _ids_of(self, exchange: Exchange) -> list[str]:
        if not exchange.creates_session:
            return []
        session_id = json.loads(exchange.response["body"])["session"]["id"]
        commits = [commit["id"] for commit in self.recording.commits() if commit["k"] == session_id]
        return [session_id, *commits[:1]]

    # --- comparing ----------------------------------------------------------------------------------------------------

    def check(self, exchange: Exchange, response: httpx2.Response) -> None:
        """Compare status, headers and body with the recorded ones."""
        assert response.status_code == exchange.status
        self.check_headers(exchange, response)
        if exchange.syncs:
            self.check_sync(exchange, response)
        elif exchange.creates_session:
            self.check_session(exchange, response)
        else:
            assert response.text == (exchange.response["body"] or "")

    def check_headers(self, exchange: Exchange, response: httpx2.Response) -> None:
        expected = dict(exchange.response["headers"])
        actual = {name: value for name, value in response.headers.items() if name != "date"}
        is_sync = exchange.status == 200 and exchange.syncs
        assert (actual.pop(INSTANCE_HEADER, None) is not None) is is_sync
        if exchange.status == 200 and exchange.response["body"] and exchange.response["body"][0] in "[{":
            # How many digits random seeds have is chance.
            expected.pop("content-length", None)
            assert actual.pop("content-length") == str(len(response.content))
        assert actual == expected

    def check_session(self, exchange: Exchange, response: httpx2.Response) -> None:
        expected, actual = json.loads(exchange.response["body"]), response.json()
        assert actual == expected
        assert "privateKey" not in response.text

    def check_sync(self, exchange: Exchange, response: httpx2.Response) -> None:
        """Compare a ``/batch-sync`` answer: paths, versions, counts, commits, and the members of the filters."""
        actual, recorded, asked = response.json(), exchange.answer, json.loads(exchange.request["body"])
        assert [one["path"] for one in actual] == [one["path"] for one in recorded]
        for ours, theirs, question in zip(actual, recorded, asked, strict=True):
            assert list(ours) == ["path", "res"]
            self.check_message(ours["path"], ours["res"], theirs["res"], question["msg"])

    def check_message(self, path: str, ours: Json, theirs: Json, question: Json) -> None:
        """Compare one element; what is kept or dropped on purpose is taken into account, to the commit."""
        kept, dropped = self.kept[path], self.dropped[path]
        withheld = theirs["c"] == [] and not any(_filter(theirs).bits) and theirs["s"] > 0
        assert list(ours) == list(theirs)
        assert ours["ver"] == theirs["ver"]
        assert ours["s"] == theirs["s"] + len(kept) - len(dropped)
        assert ours["ad"] == theirs["ad"]
        own = {commit["id"]: commit for commit in theirs["c"]}
        expected = own.keys() - dropped
        if not withheld:
            expected |= {commit_id for commit_id in kept if commit_id not in _filter(question)}
        assert {commit["id"] for commit in ours["c"]} == expected
        assert len(ours["c"]) == len(expected)
        for commit in ours["c"]:
            if commit["id"] in own:
                made = self.made_by_server(commit)
                assert _comparable(commit, made) == _comparable(own[commit["id"]], made)
        assert list(ours["f"]) == ["__t", "__v"]
        assert ours["f"]["__t"] == "E"
        if not kept and not dropped and not self.settling:
            assert len(_filter(ours).bits) == len(_filter(theirs).bits)
            assert len(_filter(ours).seeds) == len(_filter(theirs).seeds)
        if not any(_filter(theirs).bits):
            assert not any(_filter(ours).bits), "the recorded filter is empty, ours is not"
            return
        for commit_id in self.stored(path):
            assert commit_id in _filter(ours), "our filter lacks a commit that we hold"
            assert commit_id in kept or commit_id in _filter(theirs), "the recorded server did not hold this commit"

    def check_truthful(self, exchange: Exchange, response: httpx2.Response) -> None:
        """Check an answer of ours where there is no recorded one to compare with: complete and true."""
        assert response.status_code == 200
        asked = json.loads(exchange.request["body"])
        for ours, question in zip(response.json(), asked, strict=True):
            assert ours["path"] == question["path"]
            stored = self.stored(ours["path"])
            assert ours["res"]["s"] == len(stored)
            sent = [commit["id"] for commit in ours["res"]["c"]]
            assert sorted(sent) == sorted(one for one in stored if one not in _filter(question["msg"]))
            assert all(commit_id in _filter(ours["res"]) for commit_id in stored)

    def made_by_server(self, commit: Json) -> bool:
        before = {record["id"] for name in self.recording.files_before for record in self._records(name)}
        return commit["id"] not in before and not any(
            commit["id"] in (exchange.request.get("body") or "") for exchange in self.recording.exchanges
        )

    def _records(self, name: str) -> list[Json]:
        return self.recording.files_before[name] if name.endswith(".jsonl") else []

    def stored(self, path: str) -> set[str]:
        """The ids in our log of a repository, as they are on the disk."""
        kind, name = path.strip("/").split("/")[:2]
        file = self.directory / ORG / kind / f"{name}.jsonl"
        if not file.exists():
            return set()
        return {json.loads(line)["id"] for line in file.read_bytes().splitlines() if line}


def _filter(message: Json) -> BloomFilter:
    try:
        return BloomFilter.from_json(message["f"]["__v"])
    except DecodeError as error:
        raise AssertionError(f"no filter: {error}") from None


def _comparable(commit: Json, made_by_server: bool) -> Json:
    comparable = dict(commit)
    if made_by_server:
        for name in ("sig", "cid", "ts", "af"):
            assert comparable.pop(name, None) is not None
    return comparable
