"""Text from kernels and programs: emitters choose spelling only. May import `ir`."""
