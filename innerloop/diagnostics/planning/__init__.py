"""The parts of `plan`: candidates, the search for one that fits, and amounts of memory."""
