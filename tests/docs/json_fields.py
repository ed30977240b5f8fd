"""Describe the JSON documents that the commands write with ``--json``: each field's name, type and meaning.

docs/reference/json.md is generated from this module, and the tests compare each command's output with it. In a field's
name, a dot separates an object from its field, and ``[]`` stands for the elements of an array. An object that several
commands write is described once, in `OBJECTS`, and `Field.shape` refers to it. A name that is empty or ends with a dot
stands for all fields of the object in `Field.shape`, which then stand beside other fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a JSON document.

    Attributes:
        form: ``string``, ``integer``, ``number``, ``boolean``, ``object``, ``map``, ``array of`` one of them, and each
            of these ``or null``. The keys of a ``map`` are data.
        meaning: What the field holds, in a sentence.
        shape: Name in `OBJECTS` of what the object, or each element of the array, consists of.
    """

    form: str
    meaning: str
    shape: str = ""


Fields = dict[str, Field]

_ORG: Final = Field("string", "Organization.")
_STORE: Final = Field("string", "Address of the store.")
_CURRENT: Final = Field("string", "Id of the current root.")
_DRY_RUN: Final = Field("boolean", "Whether the command was asked to change nothing.")
_READY: Final = Field("boolean", "Always true; the line is written once requests are answered.")
_OBSTACLES: Final = Field("array of string", "What prevents a rotation from starting now.")
_REPORT: Final = Field("object", "How the rotation ended.", "rotation report")
_CHECKS: Final = Field("array of object", "The checks.", "check")
_KEYS: Final = Field("object", "The stored versions, and the roots whose private keys they hold.", "key inventory")

OBJECTS: Final[dict[str, Fields]] = {
    "server": {
        "region": Field("string or null", "Region of the server."),
        "storeRegion": Field("string or null", "Region of the store that the server read last."),
        "storeVersion": Field("string or null", "The store's id of the version that the server read last."),
        "storesNotFollowed": Field(
            "array of string",
            "Regions whose store does not answer the server, or holds an earlier identity than the one in use.",
        ),
        "url": Field("string", "URL of the server."),
        "unmodified": Field("boolean", "Whether the server runs unmodified GoatDB."),
        "trustsCurrent": Field("boolean or null", "Whether the server accepts a request signed by the current root."),
        "trustsNext": Field("boolean or null", "Whether the server accepts a request signed by the next root."),
        "holdsIntroduction": Field(
            "boolean or null", "Whether the server holds the introduction of the next root, before that root signs."
        ),
        "holdsCrossSignature": Field(
            "boolean or null",
            "Whether the server holds the cross-signature: the previous root's introduction, signed by the new root.",
        ),
        "signsWith": Field("string or null", "Id of the root that the server signs with."),
        "generation": Field(
            "integer or null", "Generation of the identity document that the server has read from the store."
        ),
        "phase": Field("string or null", "Phase in the identity document that the server has read from the store."),
        "clockAheadMs": Field(
            "integer or null",
            "Milliseconds by which the server's clock is ahead of this machine's.",
        ),
        "version": Field(
            "string or null",
            "Version of Goatherd, of the server or of its agent.",
        ),
        "viewAge": Field("string or null", "Time since the server last read the store."),
        "degraded": Field("boolean or null", "Whether the server's last read of the store failed or was rejected."),
        "source": Field("string or null", "Source of the server's identity: `store`, `file` or `last known good`."),
        "roots": Field("array of string", "Ids of the roots that the server trusts."),
        "viewInterval": Field("string or null", "How often the server reads the store."),
        "watching": Field("boolean", "Whether the store notifies the server of changes."),
        "data": Field("object or null", "Result of the server's check of its own logs."),
        "data.complete": Field("boolean", "Whether the server has read all of its logs."),
        "data.records": Field("integer", "Number of commits that the server has read."),
        "data.damaged": Field("integer", "Number of damaged records."),
        "data.unverifiable": Field("integer", "Number of records whose signature cannot be verified."),
        "data.unwritable": Field("integer", "Number of repositories whose log cannot be written now."),
        "agent": Field("object or null", "What the server's agent reports."),
        "agent.state": Field("string", "`starting`, `serving`, `restarting` or `stopped`."),
        "agent.started": Field("string or null", "Id of the root that the agent started the server with."),
        "agent.restarts": Field("integer or null", "Number of restarts of the server by this agent."),
        "agent.leakCheck": Field(
            "string or null",
            "Timestamp at which the agent last checked that the server does not expose its private key.",
        ),
        "agent.pending": Field("array of string", "Why the agent is about to restart the server."),
        "agent.door": Field("object or null", "What the door in front of the server reports."),
        "agent.door.passedOn": Field("integer or null", "Number of requests that the server has answered."),
        "agent.door.exposed": Field("boolean", "Whether the server can be reached without the door."),
        "agent.door.stopped": Field("integer or null", "Number of requests and commits that the door has stopped."),
        "keyOnDisk": Field(
            "boolean", "Whether the server's data directory holds a `settings.json` with a private key."
        ),
        "problem": Field("string or null", "What is wrong with the server."),
    },
    "session": {
        "id": Field("string", "Id of the root session."),
        "fingerprint": Field("string", "First 16 hexadecimal digits of the SHA-256 of the public key."),
        "owner": Field("string", "Owner of the session: `root`."),
        "expiration": Field("string", "Timestamp at which the root expires."),
    },
    "identity": {
        "version": Field("integer", "Version of the identity document's format."),
        "generation": Field("integer", "Number that grows with each write of the identity document."),
        "phase": Field("string", "Phase of the rotation in progress; `steady` when there is none."),
        "signed": Field("boolean", "Whether the current root has signed this identity document."),
        "current": Field("object", "The current root.", "session"),
        "next": Field("object or null", "The next root, during a rotation.", "session"),
        "anchor": Field("object", "The root that alone endorses other roots; absent if there is none."),
        "anchor.": Field("object", "The anchor's session.", "session"),
        "roots": Field("array of object", "The trusted roots."),
        "roots[].": Field("object", "The root.", "session"),
        "roots[].revoked": Field("boolean", "Whether the root is revoked."),
        "lastUpdated": Field("string or null", "Timestamp of the last write."),
        "rotatedFrom": Field("string or null", "Id of the root that the current root has replaced."),
        "rotatedAt": Field("string or null", "Timestamp at which the current root replaced that root."),
        "rotation": Field("object or null", "The rotation in progress."),
        "rotation.id": Field("string", "Id of the rotation."),
        "rotation.phase": Field("string", "Phase of the rotation."),
        "rotation.from": Field("string", "Id of the root that signed when the rotation started."),
        "rotation.to": Field("string", "Id of the next root."),
        "rotation.startedAt": Field("string", "Timestamp at which the rotation started."),
        "rotation.startedBy": Field("string", "User or controller that started the rotation."),
        "rotation.phaseAt": Field("string", "Timestamp at which the phase began."),
        "rotation.stableVersion": Field("string", "Stored version that `stable` points at, if any."),
        "rotation.restores": Field("boolean", "Always true; present only when the rotation restores a previous root."),
        "rotation.anchor": Field("string", "Id of the new anchor, if the rotation adds or replaces the anchor."),
        "rotation.removesAnchor": Field("boolean", "Always true; present only if the rotation removes the anchor."),
        "endorsements": Field("array of object", "Signatures by which one root makes another trusted."),
        "endorsements[].by": Field("string", "Id of the root that signs."),
        "endorsements[].of": Field("string", "Id of the root that becomes trusted."),
        "revoked": Field("array of object", "The revoked roots."),
        "revoked[].id": Field("string", "Id of the revoked root."),
        "revoked[].at": Field("string", "Timestamp of the revocation."),
        "revoked[].reason": Field("string", "Reason that the operator gave."),
        "revoked[].successor": Field(
            "string",
            "Id of the root that took the revoked root's place; absent if the revoked root did not sign.",
        ),
        "revoked[].freeze": Field("object", "The frozen commits; absent until they are collected from every server."),
        "revoked[].freeze.at": Field("string", "Timestamp at which the list of frozen commits was closed."),
        "revoked[].freeze.commits": Field("integer", "Number of frozen commits."),
        "revoked[].freeze.digest": Field("string", "Digest of the list of frozen commits."),
        "revoked[].settledAt": Field("string", "Timestamp at which every session was reissued; absent until then."),
        "history": Field("array of object", "What happened to the identity, oldest first.", "event"),
        "prunedRoots": Field("integer", "Number of previous roots that the document no longer lists."),
        "unknownMembers": Field("array of string", "Names of members that this release does not know."),
    },
    "event": {
        "at": Field("string", "Timestamp of the event."),
        "event": Field("string", "What happened, such as `rotated`."),
        "from": Field(
            "string or null",
            "Id of the root that signed before. If an event lacks this or a later field, the field is null in"
            " `goatherd history`, and absent elsewhere.",
        ),
        "to": Field("string or null", "Id of the next root."),
        "reason": Field("string or null", "Why the event happened."),
        "rotation": Field("string or null", "Id of the rotation."),
        "startedBy": Field("string or null", "User and machine that started the rotation."),
    },
    "stored version": {
        "id": Field(
            "string",
            "Id of the version; in the key inventory `REGION:ID` for one in the store of another region,"
            " `REGION:*` for such a store that could not be searched.",
        ),
        "labels": Field("array of string", "Labels of the version."),
        "state": Field("string", "State of the version in the store, such as `enabled`."),
        "leftover": Field("boolean", "Whether an interrupted change left the version behind."),
    },
    "kept version": {
        "version": Field("string", "Id of the version."),
        "labels": Field("array of string", "Labels that keep the version."),
    },
    "rotation report": {
        "outcome": Field(
            "string",
            "`rotated`, `restored`, `cancelled`, `rolled-back`, `ended` (by another command), `reached`, `retired` or"
            " `nothing to do`.",
        ),
        "rotation": Field("string or null", "Id of the rotation."),
        "from": Field("string", "Id of the root that signed at the start."),
        "to": Field("string or null", "Id of the next root."),
        "current": _CURRENT,
        "phase": Field("string", "Phase at the end; `steady` unless the command stopped with `--to`."),
        "generation": Field("integer", "Generation of the identity document at the end."),
        "reason": Field("string or null", "Why the rotation was cancelled or rolled back, or what else ended it."),
        "event": Field(
            "string or null", "How the history records the end, such as `rolled-back`; null when a revocation ended it."
        ),
        "behind": Field("array of string", "URLs of servers that do not sign with the current root yet."),
        "leftOut": Field("array of string", "URLs of servers that the quorum did not wait for."),
        "destroyed": Field("array of string", "Ids of the versions that were destroyed."),
        "givenUp": Field(
            "array of string", "Ids of versions that the store was asked to destroy, but may keep longer."
        ),
        "kept": Field("array of object", "Versions that a label keeps from being destroyed.", "kept version"),
        "undestroyed": Field("array of string", "Versions that the store did not destroy, with the error's code."),
        "restarts": Field("array of object", "One object for each server that answered during the command."),
        "restarts[].node": Field("string", "URL of the server."),
        "restarts[].count": Field("integer or null", "Number of restarts that were observed."),
        "began": Field("string", "Timestamp of the start of the command."),
        "ended": Field("string", "Timestamp of the command's end."),
        "seconds": Field("number", "Duration of the command, in seconds."),
    },
    "key inventory": {
        "complete": Field("boolean", "Whether every stored version could be read."),
        "problem": Field("string or null", "Why the versions could not be read."),
        "versions": Field("array of object", "The stored versions."),
        "versions[].": Field("object", "The version.", "stored version"),
        "versions[].privateKeysOf": Field("array of string", "Ids of the roots whose private keys the version holds."),
        "versions[].problem": Field("string or null", "Why the version could not be read."),
        "roots": Field("array of object", "The roots of the identity."),
        "roots[].id": Field("string", "Id of the root."),
        "roots[].versions": Field("array of string", "Ids of the versions that hold the root's private key."),
        "roots[].inSigner": Field("boolean", "Whether the root is an anchor, whose key is in an HSM or a KMS."),
        "roots[].recordedDestroyed": Field(
            "boolean", "Whether the history records that the root's private key is destroyed."
        ),
        "copies": Field("string or null", "Where the store may keep a copy of a value after the value was destroyed."),
        "retireDue": Field("array of string", "Ids of the versions that `goatherd retire` would destroy now."),
        "retireKept": Field(
            "array of object", "Versions that are due to be destroyed, but that a label keeps.", "kept version"
        ),
        "recordDue": Field("array of string", "Ids of roots whose destruction `goatherd retire` would record now."),
        "retireNext": Field("string or null", "Timestamp at which the next version is due to be destroyed."),
    },
    "region": {
        "region": Field("string", "Region of the store; `-` for a single store."),
        "provider": Field("string", "URI scheme of the store."),
        "role": Field("string", "`primary` or `follower`."),
        "reachable": Field("boolean", "Whether the identity in the store could be read."),
        "generation": Field("integer or null", "Generation of the store's identity document."),
        "labels": Field("map of string", "Id of the version that each label points at."),
        "standing": Field(
            "string or null",
            "`same`, `behind`, `another history` or `untrusted`, compared with the latest identity in any store.",
        ),
        "inStep": Field("boolean", "Whether the store holds the latest identity, with the right labels."),
        "lagSince": Field(
            "string or null",
            "Timestamp of the change that the store lacks, if it lacks exactly one.",
        ),
        "problem": Field("string or null", "Why the store does not answer or does not follow."),
        "hint": Field("string or null", "What to do about the problem."),
    },
    "finding": {
        "repository": Field("string", "Path of the repository."),
        "file": Field("string", "Path of the log, or of its `.damaged` file if the kind is `set-aside`."),
        "offset": Field("integer", "Offset of the record in the file, in bytes."),
        "length": Field("integer", "Length of the record, in bytes."),
        "kind": Field("string", "`torn`, `damaged`, `not-a-commit`, `unverifiable` or `set-aside`."),
        "reason": Field("string", "Why the record cannot be used."),
        "code": Field("string or null", "Error code of a failed verification."),
        "commit": Field("string or null", "Id of the commit, if the record can be read as a commit."),
    },
    "check": {
        "check": Field("string", "Name of the check."),
        "name": Field("string", "Former name of the check; the next release removes it."),
        "level": Field("string", "`ok`, `warn`, `fail` or `skip`."),
        "text": Field("string", "What was found."),
        "hint": Field("string", "What to do, or empty."),
    },
    "conflict": {
        "session": Field("string", "Id of the session."),
        "commits": Field("array of string", "Ids of the commits that create the session."),
        "heldBy": Field("array of string", "Directories and URLs of the servers that hold these commits."),
    },
    "due": {
        "act": Field("string", "What the controller does next, such as `rotate` or `retire`."),
        "at": Field("string or null", "Timestamp from which the action is due."),
        "why": Field("string", "Why the action is due then."),
        "due": Field("string or null", "Timestamp from which the action is due by the age of the key."),
        "urgent": Field("boolean", "Whether the root expires soon or has expired."),
    },
}
"""Objects that are part of several documents, or of one in several places."""

DOCUMENTS: Final[dict[str, Fields]] = {
    "--version": {
        "version": Field("string", "Version of Goatherd."),
        "python": Field("string", "Version and implementation of Python."),
        "platform": Field("string", "Operating system and processor."),
        "cryptography": Field("string", "Version of the library that makes and verifies signatures."),
        "openssl": Field("string", "Version of the OpenSSL in that library."),
        "awscrt": Field(
            "string or null",
            "Version of the library with AWS-LC, which verifies signatures in servers; null if it is not installed.",
        ),
        "tls": Field("string", "Version of the OpenSSL that Python uses for connections."),
        "extras": Field("array of string", "Extras that are installed."),
        "missingExtras": Field("array of string", "Extras of which a library is missing."),
    },
    "error": {
        "error": Field("object", "The error that ended the command, in place of its result."),
        "error.code": Field("string", "Error code."),
        "error.message": Field("string", "What happened."),
        "error.hint": Field("string", "What to do, or empty."),
        "nodes": Field(
            "array of object", "`status` only: what each server reports while the store cannot be read.", "server"
        ),
    },
    "init": {
        "store": _STORE,
        "storeVersion": Field("string", "Id of the stored version."),
        "created": Field("boolean", "Always true."),
        "": Field("object", "The new identity.", "identity"),
    },
    "migrate": {
        "dryRun": _DRY_RUN,
        "organizations": Field("array of object", "One object for each organization and data directory."),
        "organizations[].org": _ORG,
        "organizations[].settings": Field("string", "Path of the settings.json."),
        "organizations[].store": _STORE,
        "organizations[].current": _CURRENT,
        "organizations[].migrated": Field("boolean", "Whether the identity was written, or would be."),
        "organizations[].alreadyThere": Field("boolean", "Whether the store held the identity already."),
        "organizations[].readBack": Field("boolean", "Whether the store has given the same identity back."),
        "organizations[].sessionsInLog": Field("integer", "Number of trusted sessions that the log holds already."),
        "organizations[].sessionsWritten": Field("array of string", "Ids of the sessions that were added to the log."),
        "organizations[].sessionsMissing": Field("array of string", "Ids of the sessions that no log holds."),
        "organizations[].doubtfulRoots": Field(
            "array of string", "Ids of roots that not every settings.json lists, or an only one beside its own."
        ),
        "organizations[].notes": Field("array of string", "What the operator should know."),
        "nodes": Field("array of object", "One object for each server and organization to which a request was sent."),
        "nodes[].org": _ORG,
        "nodes[].url": Field("string", "URL of the server."),
        "nodes[].root": Field("string", "Id of the root that signed the request."),
        "nodes[].trusts": Field("boolean or null", "Whether the server trusts the root."),
        "nodes[].problem": Field("string or null", "Why the server did not answer."),
        "removed": Field("array of string", "What was done with each settings.json."),
        "stillOnDisk": Field("array of string", "Paths of settings.json files that still hold the private key."),
    },
    "export": {
        "file": Field("string", "Path of the file."),
        "version": Field("string", "Id of the stored version."),
        "current": _CURRENT,
        "roots": Field("integer", "Number of roots in the file."),
        "trustedSessions": Field("integer", "Number of user sessions in the file."),
    },
    "show": {
        "store": _STORE,
        "storeVersion": Field("string", "Id of the stored version."),
        "labels": Field("array of string", "Labels of the stored version."),
        "": Field("object", "The identity.", "identity"),
    },
    "versions": {
        "store": _STORE,
        "versions": Field("array of object", "The stored versions, newest first."),
        "versions[].": Field("object", "The version.", "stored version"),
        "versions[].created": Field("string", "Timestamp at which the version was written."),
    },
    "versions label": {
        "store": _STORE,
        "label": Field("string", "The label."),
        "from": Field("string or null", "Id of the version that held the label before."),
        "to": Field("string or null", "Id of the version that holds the label now."),
        "changed": Field("boolean", "Whether anything was changed."),
    },
    "copy": {
        "source": Field("string", "Address of the store that was read."),
        "destination": Field("string", "Address of the store that was written."),
        "org": _ORG,
        "dryRun": _DRY_RUN,
        "complete": Field("boolean", "Whether everything was copied and read back."),
        "alreadyThere": Field("integer", "Number of versions that the destination held already."),
        "versions": Field("array of object", "The versions, oldest first."),
        "versions[].from": Field("string", "Id of the version in the source."),
        "versions[].to": Field("string or null", "Id of the version in the destination, once written."),
        "versions[].labels": Field("array of string", "Labels of the version."),
        "skipped": Field("array of object", "Versions that are not copied."),
        "skipped[].id": Field("string", "Id of the version in the source."),
        "skipped[].reason": Field("string", "Why the version is not copied."),
        "leftLabels": Field("array of object", "Labels of other tools that the destination does not take."),
        "leftLabels[].label": Field("string", "The label."),
        "leftLabels[].version": Field("string", "Id of the version in the source."),
    },
    "config": {
        "file": Field("string or null", "Path of the configuration file that was read."),
        "options": Field("array of object", "Every option."),
        "options[].key": Field("string", "Name of the option in the configuration file."),
        "options[].value": Field("string or null", "Value of the option; secrets are hidden."),
        "options[].source": Field("string", "Where the value comes from, such as `default`."),
        "options[].variable": Field("string or null", "Environment variable that sets the option."),
    },
    "policy": {
        "provider": Field("string", "URI scheme of the platform."),
        "role": Field("string", "`server`, `rotator`, `admin` or `signer`."),
        "secret": Field("string", "Address of the secret."),
        "policy": Field("string", "The policy, in the platform's own format."),
    },
    "status": {
        "state": Field("string", "The verdict: `well`, `rotating`, `degraded`, `failed` or `unknown`."),
        "summary": Field("string", "The state of the cluster, as a sentence."),
        "next": Field("string", "What to do next, as a sentence."),
        "findings": Field("array of object", "What needs attention."),
        "findings[].text": Field("string", "What was found."),
        "findings[].advice": Field("string or null", "What to do about it."),
        "nextRotation": Field("object or null", "When the next rotation is due by the configured schedule."),
        "nextRotation.at": Field("string or null", "Timestamp; null if no rotation is due at any time."),
        "nextRotation.why": Field("string or null", "The reason."),
        "store": _STORE,
        "storeVersion": Field("string", "Id of the stored version that `current` points at."),
        "labels": Field(
            "map of string",
            "Id of the version that each label points at; only `current` may be listed if the credentials may not"
            " list versions.",
        ),
        "identity": Field("object", "The identity.", "identity"),
        "rotation": Field("object or null", "State of the rotation in progress; null also if no servers are listed."),
        "rotation.phase": Field("string", "Phase of the rotation."),
        "rotation.since": Field("string", "Timestamp at which the phase began."),
        "rotation.until": Field(
            "string", "Timestamp by which the servers must have followed, according to this configuration."
        ),
        "rotation.waitingFor": Field("array of string", "What the rotation is waiting for, and from which servers."),
        "lastRotation": Field("object or null", "How the last rotation ended."),
        "lastRotation.event": Field("string", "How the rotation ended, such as `rotated` or `cancelled`."),
        "lastRotation.at": Field("string", "Timestamp of the rotation's end."),
        "lastRotation.from": Field("string or null", "Id of the root that signed before."),
        "lastRotation.to": Field("string or null", "Id of the next root."),
        "lastRotation.reason": Field("string or null", "Why the rotation was cancelled or rolled back."),
        "lastRotation.startedBy": Field("string or null", "User and machine that started the rotation."),
        "privateKeys": _KEYS,
        "unlistedRoots": Field(
            "array of string", "Ids of the roots that servers trust although the identity does not list them."
        ),
        "notes": Field("array of string", "What the operator should know about the identity."),
        "obstacles": _OBSTACLES,
        "storeClockAheadMs": Field(
            "integer or null",
            "Milliseconds by which the store's clock is ahead of this machine's; null if the store shows no time.",
        ),
        "stores": Field("array of object", "The store of each region; empty with a single store.", "region"),
        "nodes": Field("array of object", "One object for each server.", "server"),
    },
    "history": {
        "store": _STORE,
        "events": Field("array of object", "What happened to the identity, oldest first."),
        "events[].": Field("object", "The event.", "event"),
        "events[].startedAt": Field("string or null", "Timestamp at which the rotation started."),
        "events[].startedBy": Field(
            "string or null",
            "User or controller that started the rotation, or, from the audit trail, that revoked the root. Only the"
            " audit trail has `startedAt`.",
        ),
    },
    "doctor": {
        "healthy": Field("boolean", "Whether no check has failed."),
        "checks": _CHECKS,
    },
    "doctor --signer": {
        "healthy": Field("boolean", "Whether no check has failed."),
        "signer": Field("object", "The signer and what it declares."),
        "signer.scheme": Field("string", "URI scheme of the signer."),
        "signer.key": Field("string", "Name of the key on its platform."),
        "signer.kind": Field("string or null", "Kind of the key."),
        "signer.fingerprint": Field("string or null", "First 16 hexadecimal digits of the SHA-256 of the public key."),
        "signer.exportable": Field("boolean", "Whether a process can read the private key in a usable form."),
        "signer.latency": Field("string", "Cost of a signature in time: `memory`, `device` or `service`."),
        "signer.region": Field("string or null", "Where the service is."),
        "signer.maxTextBytes": Field("integer or null", "Longest text that can be signed; null for no limit."),
        "signer.signaturesPerSecond": Field("integer or null", "Rate of signatures that the platform documents."),
        "signer.seconds": Field("number or null", "Median duration of a signature."),
        "checks": _CHECKS,
    },
    "rotate": {"": _REPORT},
    "rotate --plan": {
        "phase": Field("string", "Phase of the rotation now."),
        "current": _CURRENT,
        "resumes": Field("string or null", "Id of the rotation that would be resumed."),
        "startedBy": Field("string or null", "Who started that rotation."),
        "startedAt": Field("string or null", "Timestamp at which the rotation started."),
        "nodes": Field("array of string", "URLs of the servers."),
        "aliases": Field("object", "For a server that is listed under several URLs, the further ones."),
        "regions": Field("map of array of string", "The servers of each region, as far as they report their region."),
        "followers": Field(
            "array of string", "Regions whose store must show each change of the primary store before the next one."
        ),
        "notWaitedFor": Field("array of string", "Servers that the rotation does not wait for."),
        "obstacles": _OBSTACLES,
        "remarks": Field("array of string", "What the operator should know."),
        "stops": Field("array of string", "What stops the rotation."),
        "steps": Field("array of object", "The steps, in their order."),
        "steps[].step": Field("string", "Name of the step."),
        "steps[].leadsTo": Field("string", "Phase after the step."),
        "steps[].effect": Field("string", "What the step does."),
        "steps[].risk": Field("string", "What can go wrong."),
        "steps[].gate": Field("array of string", "What every server must have done before the step."),
        "steps[].also": Field("array of string", "What else must have happened before the step."),
        "steps[].patience": Field("string or null", "Timeout of the step."),
        "steps[].otherwise": Field("string or null", "What happens after the timeout."),
        "steps[].storeReads": Field("integer", "Least number of reads of the store."),
        "steps[].storeWrites": Field("integer", "Least number of writes to the store."),
        "steps[].nodeRequests": Field("integer", "Least number of requests to each server."),
    },
    "rotate --drop-lost-anchor": {
        "current": _CURRENT,
        "generation": Field("integer", "Generation of the identity document."),
    },
    "rotate --replace-expired": {
        "expired": Field("string", "Id of the root that had expired."),
        "current": _CURRENT,
        "generation": Field("integer", "Generation of the identity document."),
        "written": Field("boolean", "Whether this run, not an earlier one, wrote the identity."),
        "complete": Field("boolean", "Whether nothing is left to do."),
        "introducible": Field(
            "boolean",
            "Whether existing clients can follow, because the expired root's private key or an anchor"
            " introduces the new root.",
        ),
        "nodes": Field("array of object", "One object for each server."),
        "nodes[].url": Field("string", "URL of the server."),
        "nodes[].followed": Field("boolean", "Whether nothing is left to do at the server."),
        "nodes[].unmodified": Field("boolean", "Whether the server runs unmodified GoatDB."),
        "nodes[].trustsCurrent": Field(
            "boolean or null", "Whether the server accepts a request signed by the current root."
        ),
        "nodes[].signsWith": Field("string or null", "Id of the root that the server signs with."),
        "nodes[].introduction": Field(
            "boolean or null", "Whether the server holds the introduction of the current root by the expired one."
        ),
        "nodes[].crossSignature": Field(
            "boolean or null", "Whether the server holds the introduction of the expired root by the current one."
        ),
        "nodes[].problem": Field("string or null", "What could not be checked at the server."),
    },
    "restore": {"": _REPORT},
    "sign": {
        "store": _STORE,
        "storeVersion": Field("string", "Id of the current version."),
        "signature": Field(
            "string",
            "`valid`, `missing`, `outdated` (made for an earlier generation) or `invalid`, before the command.",
        ),
        "current": _CURRENT,
        "generation": Field("integer", "Generation of the identity document, before the command."),
        "signedVersion": Field("string or null", "Id of the last signed version."),
        "changes": Field("array of string", "What differs between that version and the current one."),
        "written": Field("integer or null", "Generation that the command has written."),
    },
    "revoke": {
        "plan": Field("boolean", "Whether the command was asked to change nothing."),
        "revoked": Field("string", "Id of the revoked root."),
        "current": _CURRENT,
        "generation": Field("integer", "Generation of the identity document."),
        "complete": Field("boolean", "Whether nothing is left to do."),
        "proof": Field("boolean", "Whether the revoked root's key has signed the revocation."),
        "closed": Field("boolean", "Whether the list of frozen commits is complete."),
        "frozen": Field("integer", "Number of frozen commits."),
        "settled": Field("boolean", "Whether no session depends on the revoked root any more."),
        "sessions": Field("integer", "Number of sessions to reissue."),
        "pushed": Field("integer", "Number of sessions that this run has reissued."),
        "longLived": Field("array of string", "Ids of sessions that expire later than GoatDB allows."),
        "rogueRoots": Field("array of string", "Ids of roots that only the revoked root introduced."),
        "forged": Field(
            "integer", "Number of session commits that name the revoked root as signer but were not signed by it."
        ),
        "lateSessions": Field(
            "array of string", "Ids of sessions that the revoked root introduced after the others were reissued."
        ),
        "leftOut": Field("array of string", "Ids of the sessions that are not reissued because of `--except`."),
        "destroyed": Field("array of string", "Ids of the versions that were destroyed."),
        "givenUp": Field(
            "array of string", "Ids of versions that the store was asked to destroy, but may keep longer."
        ),
        "kept": Field("array of object", "Versions that a label keeps from being destroyed.", "kept version"),
        "keysLeft": Field("array of string", "Ids of versions that still hold the revoked root's private key."),
        "unknownLeft": Field(
            "array of string", "Ids of versions that an interrupted change left behind and whose keys are unknown."
        ),
        "alsoStored": Field("array of string", "Ids of other roots whose private keys the store holds."),
        "laggingRegions": Field("array of string", "Regions whose store lagged, and for which the run did not wait."),
        "expired": Field(
            "boolean", "With `--plan`: whether the current root has expired; then `sessions` and `nodes[].alone` are 0."
        ),
        "anchorProblem": Field(
            "string or null",
            "With `--plan`: why the anchor's signer cannot sign; null if it can, or if there is none.",
        ),
        "stableProblem": Field(
            "string or null", "Why label `stable` could not be moved to the new identity; null when it was moved."
        ),
        "nodes": Field("array of object", "One object for each server."),
        "nodes[].url": Field("string", "URL of the server."),
        "nodes[].unmodified": Field(
            "boolean", "Whether the server runs unmodified GoatDB, or Goatherd with a settings.json."
        ),
        "nodes[].door": Field(
            "boolean", "Whether the door is in front of the unmodified server, and clients cannot bypass it."
        ),
        "nodes[].refuses": Field("boolean", "Whether the server rejects the revoked root."),
        "nodes[].held": Field("integer or null", "Number of commits of the revoked root that the server holds."),
        "nodes[].inFlight": Field("integer", "Number of frozen commits that the server does not hold yet."),
        "nodes[].late": Field("integer", "Number of the revoked root's commits on the server that are not frozen."),
        "nodes[].distrusted": Field(
            "boolean",
            "Whether `--distrust` names the server.",
        ),
        "nodes[].sole": Field("boolean", "Whether this is the only server whose list counts."),
        "nodes[].alone": Field("integer", "Number of commits that do not count, because only this server lists them."),
        "nodes[].claims": Field("array of object", "What these commits are, as this server reports; sessions first."),
        "nodes[].claims[].path": Field("string", "Repository; `/sys/sessions` for sessions."),
        "nodes[].claims[].key": Field("string", "Key of the item; in `/sys/sessions` the id of the session."),
        "nodes[].claims[].commits": Field("integer", "Number of commits."),
        "nodes[].claims[].first": Field(
            "string or null", "Earliest timestamp of these commits; their signer chose it."
        ),
        "nodes[].claims[].last": Field("string or null", "Latest timestamp of these commits; their signer chose it."),
        "nodes[].countedAlone": Field("integer", "Number of commits that count only because of `--trust-alone`."),
        "nodes[].introduced": Field(
            "integer or null", "Number of sessions introduced by the successor that the server holds."
        ),
        "nodes[].problem": Field("string or null", "What went wrong at the server."),
        "seconds": Field("map of number", "Duration of each part, in seconds."),
        "nodeCalls": Field("integer", "Number of requests to servers."),
        "storeCalls": Field("integer", "Number of requests to the store."),
    },
    "controller --explain": {
        "store": _STORE,
        "current": _CURRENT,
        "expires": Field("string", "Timestamp at which the current root expires."),
        "now": Field("string", "Timestamp at which the command ran."),
        "isDue": Field("boolean", "Whether `next` is due now."),
        "next": Field("object", "What the controller does next.", "due"),
        "rotations": Field("array of string", "Timestamps of the next rotations."),
        "schedule": Field("object", "The schedule."),
        "schedule.controller": Field("string", "Name of the controller."),
        "schedule.cron": Field("string or null", "Cron expression."),
        "schedule.maxAge": Field("string or null", "Age at which a key is replaced."),
        "schedule.timezone": Field("string", "Time zone of the schedule."),
        "obstacles": _OBSTACLES,
    },
    "controller --once": {
        "store": _STORE,
        "done": Field("string", "What the controller did, such as `rotate`; `nothing` if nothing was due."),
        "yielded": Field("boolean", "Whether another process had acted first."),
        "why": Field("string", "Why the action in `next` was due, or is due next."),
        "next": Field("object", "The action that was due; if none was, the action that is due next.", "due"),
        "report": Field("object or null", "How the rotation ended.", "rotation report"),
    },
    "audit verify": {
        "file": Field("string", "Path of the audit trail."),
        "whole": Field("boolean", "Always true; a broken trail is an error."),
        "records": Field("integer", "Number of records."),
        "head": Field("string", "Head of the trail: number and digest of the last record, for `--checkpoint`."),
        "first": Field("string", "Timestamp of the first record."),
        "last": Field("string", "Timestamp of the last record."),
        "signers": Field("array of string", "Ids of the roots that have signed records."),
        "restsOn": Field(
            "string or null", "Id of the first signer, which was trusted unverified because no store was read, or null."
        ),
        "torn": Field("array of integer", "Numbers of the lines that a crash cut short."),
        "lost": Field("integer", "Number of records that could not be written."),
        "byRevoked": Field("integer", "Number of records at the end that a revoked root has signed."),
        "afterRevocation": Field(
            "array of integer", "Numbers of the lines that a root has signed after it was revoked."
        ),
    },
    "audit show": {
        "records": Field("array of object", "The records, oldest first."),
        "records[].seq": Field("integer", "Number of the record."),
        "records[].at": Field("string", "Timestamp of the record."),
        "records[].actor": Field("string", "User or controller that ran the command."),
        "records[].event": Field("string", "What happened."),
        "records[].data": Field("map", "Details of the event."),
        "records[].by": Field("string", "Id of the root that has signed the record."),
        "records[].lost": Field("integer", "Number of records before this one that could not be written."),
        "records[].sha256": Field("string", "Hash of the record."),
        "unreadable": Field("integer", "Number of lines that are no records."),
    },
    "data check": {
        "organizations": Field("array of object", "One object for each organization."),
        "organizations[].org": _ORG,
        "organizations[].directory": Field("string", "Path of the organization's directory."),
        "organizations[].verifiedWith": Field(
            "string or null", "Source of the roots with which signatures were verified."
        ),
        "organizations[].logs": Field("integer", "Number of logs."),
        "organizations[].records": Field("integer", "Number of commits."),
        "organizations[].findings": Field("array of object", "Records that cannot be used.", "finding"),
        "organizations[].conflicts": Field(
            "array of object", "Sessions that several commits create with different contents.", "conflict"
        ),
        "organizations[].problems": Field("array of string", "Why peers did not answer."),
    },
    "data repair": {
        "organizations": Field("array of object", "One object for each organization."),
        "organizations[].org": _ORG,
        "organizations[].directory": Field("string", "Path of the organization's directory."),
        "organizations[].verifiedWith": Field(
            "string or null", "Source of the roots with which signatures were verified."
        ),
        "organizations[].setAside": Field("array of object", "Records that were moved to `*.damaged`.", "finding"),
        "organizations[].restored": Field("integer", "Number of commits that were restored from `*.damaged`."),
        "organizations[].fetched": Field("integer", "Number of commits that were fetched from peers."),
        "organizations[].lacking": Field("array of string", "Ids of commits that were not fetched yet."),
        "organizations[].unidentified": Field("integer", "Number of records whose commit id cannot be read."),
        "organizations[].joined": Field(
            "array of string", "Ids of the sessions whose conflicting commits were joined by a merge commit."
        ),
        "organizations[].given": Field("integer", "Number of merge commits that were pushed to the peers."),
        "organizations[].conflicts": Field("array of object", "Sessions that are still in conflict.", "conflict"),
        "organizations[].left": Field("array of object", "Records that still cannot be used.", "finding"),
        "organizations[].problems": Field(
            "array of string", "Why peers did not answer, or conflicts were not resolved."
        ),
    },
    "scan": {
        "store": Field("string or null", "Address of the store."),
        "findings": Field("array of object", "The private keys that were found, one for each place."),
        "findings[].path": Field("string", "Path of the file. An archive and a file in it are joined by `!`."),
        "findings[].line": Field("integer", "Line of the file, from 1."),
        "findings[].repository": Field("string or null", "Git repository whose history contains the key."),
        "findings[].commit": Field("string or null", "Id of the oldest commit that contains the key."),
        "findings[].object": Field("string or null", "Id of the git object."),
        "findings[].root": Field("string or null", "Id of the session, if the id stands beside the key."),
        "findings[].fingerprint": Field("string", "First 16 hexadecimal digits of the SHA-256 of the public key."),
        "findings[].isRoot": Field("boolean", "Whether the key is a root's key."),
        "findings[].isSettings": Field("boolean", "Whether the file is a settings file of GoatDB."),
        "findings[].inStore": Field(
            "string or null",
            "`current root`, `next root`, `trusted root`, `former root` (listed by an older version only), `revoked"
            " root`, `not trusted`, or `not listed` if servers may trust the key although no version lists it.",
        ),
        "findings[].acceptedBy": Field("array of string", "Servers that accepted a request signed with the key."),
        "findings[].live": Field(
            "boolean or null", "Whether servers accept what the key signs; null if neither store nor servers tell."
        ),
        "unsearched": Field("array of string", "What could not be searched, and why."),
        "notes": Field("array of string", "What limits the result, such as a shallow clone."),
        "files": Field("integer", "Number of files that were searched."),
        "objects": Field("integer", "Number of git objects that were searched."),
    },
    "retire": {"": _REPORT, "privateKeys": _KEYS},
    "retire --dry-run": {
        "dryRun": _DRY_RUN,
        "wouldDestroy": Field("array of string", "Ids of the versions that would be destroyed."),
        "privateKeys": _KEYS,
    },
    "stores status": {"stores": Field("array of object", "The store of each region.", "region")},
    "stores sync": {
        "complete": Field("boolean", "Whether every follower shows what the primary store holds."),
        "followers": Field("array of object", "One object for each follower."),
        "followers[].region": Field("string", "Region of the follower."),
        "followers[].inStep": Field("boolean", "Whether the follower shows what the primary store holds."),
        "followers[].before": Field("integer or null", "Generation that the follower held before."),
        "followers[].generation": Field("integer or null", "Generation that the follower holds now."),
        "followers[].problem": Field("string or null", "Why the follower is not in step."),
        "followers[].hint": Field("string or null", "What to do about the problem."),
    },
    "stores promote": {
        "region": Field("string", "Region whose store is the primary store now."),
        "before": Field("integer", "Generation that the store held before."),
        "generation": Field("integer", "Generation that the store holds now."),
        "written": Field("boolean", "Whether the command, not an earlier one, promoted the store."),
        "overruled": Field(
            "array of string", "Stores and servers that showed a later identity, which `--force-generation` overruled."
        ),
        "unseen": Field("array of string", "Stores and servers whose generation is not known."),
        "reasons": Field("object", "For each store and server in `unseen`, why its generation is not known."),
        "canRollBack": Field(
            "boolean",
            "Whether a rotation in progress can still be rolled back. It cannot if it sets an anchor whose"
            " permission to roll back has expired.",
        ),
    },
    "serve": {
        "ready": _READY,
        "url": Field("string", "URL of the server."),
        "org": _ORG,
        "signer": Field("string", "Id of the root that the server signs with."),
    },
    "web": {
        "ready": _READY,
        "url": Field("string", "URL of the page."),
        "org": _ORG,
    },
    "door": {
        "ready": _READY,
        "url": Field("string", "URL of the door."),
        "upstream": Field("string", "URL of the GoatDB server behind the door."),
        "org": _ORG,
    },
    "fetch": {
        "organizations": Field("array of object", "One object for each organization."),
        "organizations[].org": _ORG,
        "organizations[].file": Field("string", "Path of the settings.json."),
        "organizations[].current": _CURRENT,
    },
    "lease": {
        "lease": Field("string", "Id of the secret that is the lease, in its store."),
        "made": Field("boolean", "Whether the command has created the lease."),
        "holder": Field("string or null", "Server that holds the lease."),
        "until": Field("string or null", "Timestamp until which the lease is held."),
    },
    "demo": {
        "passed": Field("boolean", "Whether no request was rejected and no commit was lost."),
        "servers": Field("integer", "Number of servers."),
        "clients": Field("integer", "Number of clients."),
        "requests": Field("integer", "Number of requests."),
        "refused": Field("integer", "Number of requests that were rejected."),
        "commits": Field("integer", "Number of commits that the servers accepted."),
        "lost": Field("integer", "Number of accepted commits that a server does not hold at the end."),
        "unverifiable": Field("integer", "Number of commits whose signature cannot be verified."),
        "signer": Field("string", "Id of the root that signs at the end."),
        "sessionsSignedBy": Field("map of integer", "Number of sessions that each root has signed."),
        "passages": Field("array of object", "The parts of the demo."),
        "passages[].name": Field("string", "Name of the part."),
        "passages[].requests": Field("integer", "Number of requests."),
        "passages[].refused": Field("integer", "Number of requests that were rejected."),
        "passages[].reasons": Field("map of integer", "Number of rejected requests, by reason."),
        "passages[].p50Ms": Field("number", "Median latency, in milliseconds."),
        "passages[].p99Ms": Field("number", "99th percentile of the latency, in milliseconds."),
        "passages[].phaseSeconds": Field("map of number", "How long each phase took, in seconds."),
    },
}
"""By command, with the action or the option that decides which document it is."""
