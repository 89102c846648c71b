"""Graph passes: rewrites of the tensor graph. May import `ir`."""
