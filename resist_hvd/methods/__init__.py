"""Training methods, one a module, behind one interface."""
