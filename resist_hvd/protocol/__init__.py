"""The protocol itself, as pure functions: who holds which block, and what moves when that changes."""
