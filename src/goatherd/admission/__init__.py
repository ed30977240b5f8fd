"""Checks of requests and commits that need no stored commits, and access rules. The node and the door share them. Pure.

The node is Goatherd's own server; the door is its reverse proxy in front of an unmodified GoatDB server.

* `limits`: how large a batch, a filter and a commit may be
* `requests`: checks the repository and the filter of a batch's element, and the body of ``POST /auth/session``
* `commits`: checks a commit before its signature is verified
* `access`: decides which session may read and write which repository

Checks against stored commits are in `goatherd.node.commit_checks` and `goatherd.door.commit_index`. The door also
rejects input that only an unmodified GoatDB server cannot handle (`goatherd.door.request_checks`).
"""
