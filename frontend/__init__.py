"""Model formats in."""
