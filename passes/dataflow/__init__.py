"""Integer graphs as networks of layers that run at the same time and pass their elements through
FIFOs, for FPGAs. May import `ir` and other passes."""
