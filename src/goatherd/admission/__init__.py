"""What a request or a commit must look like, and who may write where. Pure; shared by node and door.

* `limits`: how large a batch, a filter and a commit may be
* `requests`: the repository and the filter of an element, the body of ``POST /auth/session``
* `commits`: a commit before its signature is verified
* `access`: which session may read and write which repository

What depends on the commits that a server holds is checked by the node (`goatherd.node.commit_checks`) and the door
(`goatherd.door.commit_index`). Input that only an unmodified GoatDB server cannot handle is rejected by the door
(`goatherd.door.request_checks`).
"""
