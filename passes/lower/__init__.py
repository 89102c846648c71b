"""From fused graphs to programs of kernels. May import `ir`."""
