"""Stand-ins for programs, as shell scripts."""

from pathlib import Path


def make_programs(folder: Path, **scripts: str) -> str:
    """Write shell scripts into a folder, each named by its key, and return the folder as a PATH."""
    for name, body in scripts.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return str(folder)
