"""Flags and answers of the programs."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flags(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows --answer."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--answer", type=Path, required=True, metavar="FILE")
    return parser


def write(path: Path, answer: Mapping[str, Any]) -> None:
    """Write an answer."""
    path.write_text(json.dumps(answer) + "\n")
