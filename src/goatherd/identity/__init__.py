"""The identity of a cluster: its root keys ("roots"), and the document in a secret store that holds them.

Pure: the modules do no I/O, and get the time as an argument.

- `session`: sessions, and signatures of data, requests and commits.
- `request_binding`: the server, path and body that a signed request is for.
- `strict_json`: the JSON of the document, read strictly. `json_members`: the JSON objects in it, member by member.
- `root_signatures`: endorsements of one root by another, and the signature over the document.
- `revocations`: revoked roots, their proofs, and the lists of their commits that stay valid (frozen commits).
- `lineage`: digests of a document's predecessors.
- `document`: `IdentityDocument`, its checks, and its JSON.
- `redaction`: the parts of a document that may be shown.
- `session_commits`: the commits that introduce sessions.
- `succession`: which document may replace which.
- `transitions`: how a rotation or a revocation changes the document, and which roots may be removed from it.
- `introductions_for_clients`: which introductions of roots are sent to a client.
- `key_age`: how soon the current root expires, and when other roots last signed.
- `recorded_times`: finds and corrects timestamps in a document that are in the future.
- `settings_json`: GoatDB's ``settings.json``.
"""
