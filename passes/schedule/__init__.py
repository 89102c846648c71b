"""Schedules: loop transformations and kernel templates. May import `ir`."""
