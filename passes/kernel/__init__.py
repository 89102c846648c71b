"""Passes over kernels: simplification, vectorisation, legalisation. May import `ir`."""
