"""Endings of a program: signals, launchers, ranks that are lost, and the watchdog that finds them."""
