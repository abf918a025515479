"""Storage: files that are written whole, checkpoints and optimizer files."""
