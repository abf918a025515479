"""What a comparison is made of: candidates, trials, and the table of what they gave."""
