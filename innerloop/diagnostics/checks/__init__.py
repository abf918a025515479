"""What is looked at, one idea per file: functions from a subject to findings."""
