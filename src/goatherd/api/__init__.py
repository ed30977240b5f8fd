"""The functions of ``import goatherd``: sessions, and operations on a store and servers that are named by their URLs.

- `sessions`: make, encode and introduce sessions.
- `operations`: open a store and servers, and call `goatherd.operations`.

What it is not: a place for logic. A function here opens what its arguments name, calls one operation, and closes it.
"""
