"""IR to IR: graph rewrites, lowering to loops, schedules, memory planning. May import `ir`."""
