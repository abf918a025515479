"""The parts of `compare`: candidates, their measurement, and the result."""
