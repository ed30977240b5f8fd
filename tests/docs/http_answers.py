"""Describe the answers to ``GET /goatherd/v1/identity``: each member's name, type and meaning.

docs/reference/http-api.md is generated from this module, and tests compare the answers of a server
(tests/unit/node/test_server.py) and of an agent (tests/unit/agent/test_own_api.py) with it.
"""

from __future__ import annotations

from typing import Final

from tests.docs.json_fields import Field, Fields

REGIONS: Final[Fields] = {
    "region": Field("string or null", "With stores in several regions: the server's region."),
    "storeRegion": Field("string or null", "With stores in several regions: that of the store that it read last."),
    "storeVersion": Field("string or null", "With stores in several regions: its id of the version read last."),
    "storesNotFollowed": Field(
        "array of string", "Regions whose store did not answer, or holds an earlier identity than this server uses."
    ),
}
"""Members that only a server with stores in several regions has."""

IDENTITY: Final[Fields] = {
    "org": Field("string", "The organization."),
    "signer": Field("string", "Id of the root with which this server signs."),
    "roots": Field("array of string", "Ids of all trusted roots, also from `/sys/sessions`."),
    "documentRoots": Field("array of string", "Ids of the identity's own roots."),
    "revoked": Field("array of string", "Ids of revoked sessions."),
    "generation": Field(
        "integer",
        "The identity's generation. With the source `file` it is not the store's, and commands ignore it.",
    ),
    "signed": Field(
        "boolean", "Whether this server has seen a signed identity document, so that it rejects unsigned ones."
    ),
    "digest": Field("string", "SHA-256 of the identity document, hexadecimal."),
    "phase": Field("string", "Phase of the rotation in progress, or `steady`."),
    "rotation": Field("string or null", "Id of the rotation in progress."),
    "viewAgeMs": Field("integer or null", "Milliseconds since the last good answer of the store or file."),
    "viewIntervalMs": Field("integer or null", "Longest time between two reads of the store."),
    "watching": Field(
        "boolean", "Whether the store notifies this server of changes, so that it reads ten times less often."
    ),
    "degraded": Field("boolean", "Whether the last read failed or was rejected."),
    "source": Field("string", "`store`, `file`, or `last known good` (a [sealed copy](../how-to/outages.md))."),
    "refusal": Field("object or null", "Why the server is degraded."),
    "refusal.code": Field("string", "Error code of the failure or rejection."),
    "known": Field("integer", "Number of trusted sessions."),
    "pending": Field("integer", "Number of sessions not yet verified."),
    "data": Field("object or null", "Result of the check of the logs; null without a disk."),
    "data.complete": Field("boolean", "Whether every log was read."),
    "data.records": Field("integer", "Number of records in the logs."),
    "data.damaged": Field("integer", "Number of records that are not commits."),
    "data.unverifiable": Field("integer", "Number of commits with a wrong signature or an unknown signer."),
    "data.unwritable": Field("integer", "Number of repositories whose log cannot be written."),
    "instance": Field("string", "Random id of this server process."),
    "peers": Field("array of object", "The peers, without their URLs."),
    "peers[].online": Field("boolean or null", "Whether the peer's last answer was good; null before the first."),
    "peers[].instances": Field(
        "array of string", "Ids of the processes that answered at the peer's URL in the last 30 s."
    ),
    "nowMs": Field("integer", "This server's time, milliseconds since 1970."),
    "rootSigners": Field(
        "array of object", "The signers of the server ([direct mode](../explanation/anchor.md#direct-mode))."
    ),
    "rootSigners[].fingerprint": Field("string or null", "Fingerprint of the signer's public key."),
    "rootSigners[].problem": Field("string or null", "Code of the signer's last error."),
    "signingProblem": Field("string or null", "Code of the error for which it cannot sign as the current root."),
    "keyOnDisk": Field(
        "boolean", "Whether its identity is from a store, and its data directory holds a `settings.json` with a key."
    ),
    "version": Field("string", "Goatherd's version, of the server or of its agent."),
    **REGIONS,
}

LEFT_OUT_BY_AGENTS: Final = ("known", "pending", "peers", "rootSigners", "signingProblem", "keyOnDisk")
"""What an agent cannot know of its server."""

AGENT: Final[Fields] = {
    "signer": Field(
        "string or null",
        "The root that signed the session of the last leak check. Commands check at the server that it holds the commit"
        " of `agent.leakCheck`.",
    ),
    "roots": Field("array of string", "Ids of the roots that the server was started with."),
    "generation": Field(
        "integer",
        "Generation of the identity that the agent read last. While a restart is due (`agent.pending`), the server"
        " still runs with an earlier one.",
    ),
    "data": Field("object or null", "Null."),
    "instance": Field("string", "A new random id for each start of the server."),
    "agent": Field("object", "What the agent does with the server."),
    "agent.state": Field("string", "`starting`, `serving`, `restarting`, or `stopped` (restarted after a pause)."),
    "agent.pending": Field("array of string", "Why a restart is due."),
    "agent.problem": Field("string or null", "Code of the error for which the agent cannot restart the server now."),
    "agent.started": Field("string or null", "Id of the root that the server was started with."),
    "agent.restarts": Field("integer", "Number of restarts by this agent."),
    "agent.leakCheck": Field("object or null", "The last check that the server exposes no key."),
    "agent.leakCheck.atMs": Field("integer", "Time of the check, milliseconds since 1970."),
    "agent.leakCheck.commit": Field(
        "string or null",
        "The commit of `/sys/sessions` that introduced the session of the check; null if the server did not show it.",
    ),
    "agent.door": Field("object or null", "The door, if the agent has one."),
    "agent.door.passedOn": Field("integer", "Number of requests that the server answered."),
    "agent.door.stopped": Field("map of integer", "How often each [rule](door.md) was applied."),
    "agent.door.connections": Field("integer", "Open connections of callers."),
    "agent.door.requests": Field("integer", "Requests that are being answered."),
    "agent.door.sessions": Field("integer", "Sessions that the door has read from the server."),
    "agent.door.blind": Field("boolean", "Whether the door cannot read the server's sessions."),
    "agent.door.exposed": Field("boolean", "Whether the server answers at another address of its machine."),
}
"""The members in which the answer of an agent differs."""
