"""GoatDB's bytes, bug for bug. Pure: no clock, no dice, no I/O.

- `encoding`: JavaScript's values, ``JSON.stringify`` and ``JSON.parse``, the stable form that is signed, base32, dates.
- `encoders`: Dates, Sets, Maps and shared objects as marked JSON. `equality`: when GoatDB calls two values equal.
- `hashing`: MurmurHash3 as GoatDB computes it, checksums. `bloom`: its Bloom filter. `paths`: its paths.
- `schema`: schemas and the registry. `item`: items and edits. `diff`: what changed. `richtext`: its checksum.
- `commit`: commits. `messages`: sync messages and request bodies. `log`: the ``.jsonl`` log.
"""
