"""The audit trail: a signed, hash-chained file of every decision of a rotation or a revocation.

- `goatherd.audit.trail` writes and reads the file; `goatherd.audit.records` encodes and verifies its lines.
- `goatherd.audit.events_as_data` turns the events of a run into JSON data, for the trail and for the log.
"""
