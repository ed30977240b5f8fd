"""The status page: a read-only view of a cluster in a browser. It shows what ``goatherd status`` shows.

`collector` reads the store, the servers and the audit trail. `view` makes a `View` of them, the data that the page
shows (pure). `render` turns a view into HTML, and `file` writes that HTML as one file. `publisher` has the collector
make a view at intervals, and sends it to a separate process without any key (`page_process`). There, `app` answers the
readers that `access` admits.
"""
