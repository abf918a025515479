"""The checks, one topic per file: functions from a subject to findings."""
