"""Rotate a root on a schedule, without an operator.

- `goatherd.schedule.due`: what is due, and when; `goatherd.schedule.windows`: maintenance windows.
- `goatherd.schedule.controller`: the loop that rotates; `goatherd.schedule.alerts`: alerts to the operator.
"""
