"""What a plan is made of: candidates, what they cost, and the search for what fits."""
