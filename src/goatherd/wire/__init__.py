"""GoatDB's formats, reproduced byte for byte, including its bugs. Pure: no clock, no randomness, no I/O.

- `javascript_values`: JavaScript's values, numbers and dates. `json`: ``JSON.stringify``, ``JSON.parse``, and the
  stable form that is signed. `base32`: GoatDB's base32.
- `encoders`: Dates, Sets, Maps and shared objects as JSON with type markers. `equality`: when GoatDB considers two
  values equal.
- `derived_ids`: ids that are derived from strings.
- `hashing`: MurmurHash3 as GoatDB computes it, and checksums. `bloom`: GoatDB's Bloom filter. `paths`: paths of
  repositories and items.
- `schema`: schemas and the registry. `items`: items and edits. `richtext`: the checksum of rich text.
- `commit`: commits. `messages`: sync messages and request bodies. `commit_log`: the ``.jsonl`` log.
"""
