"""The audit trail: a signed, hash-chained file of every decision of a rotation or a revocation.

- `goatherd.audit.trail`: the file; `goatherd.audit.records`: its lines, the chain and the signatures.
- `goatherd.audit.events_as_data`: the events of a run as JSON data, for the trail and for the log.
"""
