"""The page: a read-only view of a cluster in a browser. It shows what ``goatherd status`` shows.

`view` builds what is shown from a status; pure. `render` makes HTML of it, and `file` writes that as one file.
`collector` reads the store, the servers and the audit trail; `publisher` does so at intervals, and gives each view to a
process of its own that holds no key (`page_process`). There, `app` answers the readers that `access` has admitted.
"""
