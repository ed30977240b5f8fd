"""One identity (the roots of a cluster) in several regions: a primary store, and followers that copy it.

- `members`: the store of one region: primary or follower, and the id that the secret has there.
- `comparison`: which of two identity documents is the later one, or whether their histories differ. Pure.
- `reader`: what servers and reading commands use: the own region's or the primary store first, then the others in
  order.
- `writer`: what writing commands use: the primary store, with a check of every follower before each change.
- `promotion`: which store may become the primary.
"""

from goatherd.stores.comparison import DocumentMark, Standing, compare_documents
from goatherd.stores.members import StoreMember
from goatherd.stores.reader import RegionalReader, StoreState, make_reader
from goatherd.stores.writer import FollowerView, ReplicatedStore

__all__ = [
    "DocumentMark",
    "FollowerView",
    "RegionalReader",
    "ReplicatedStore",
    "Standing",
    "StoreMember",
    "StoreState",
    "compare_documents",
    "make_reader",
]
