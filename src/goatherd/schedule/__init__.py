"""Rotate the root key of a cluster on a schedule, without an operator.

- `goatherd.schedule.due`: decides which action is due, and when; `goatherd.schedule.windows`: maintenance windows.
- `goatherd.schedule.controller`: the loop that performs them; `goatherd.schedule.alerts`: alerts to the operator.
"""
