"""Prints what this machine can do at most, measured now: `python bench/limits.py [THREADS ...]`."""

import sys

from smelt.roofline import measured
from smelt.screen import amount

for threads in map(int, sys.argv[1:] or ["1"]):
    found = measured(threads)
    print(f"{threads} thread{'s' if threads > 1 else ''}: {found.flops / 1e9:.1f} GFLOP/s f32; "
          + ", ".join(f"{amount(size)} at {rate / 1e9:.1f} GB/s"
                      for size, rate in found.bandwidths))
