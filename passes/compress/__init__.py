"""Making models smaller: weights of a few bits. Methods work on matrices and know no graph, no
target and no kernel; `quantise` puts what they give into a graph."""
