"""The functions of ``import goatherd``: sessions, and operations on a store and servers that are given as URLs.

- `sessions`: make, encode and introduce sessions.
- `operations`: open a store and servers, and call `goatherd.operations`.

There is no logic here: each function opens the store and the servers that its arguments name, calls one operation, and
closes them.
"""
