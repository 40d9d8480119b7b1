"""Every setting of every program, declared once, and how flags and files of settings are read."""
