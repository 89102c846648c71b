"""How constant tensors are stored: encodings, one kind a module. `base` says what an encoding is;
the package imports like the rest of `ir`."""
