"""A checkpoint's manifest as it is read: whole, as it was written, and of a version that this one understands."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from resist_hvd.nets.architecture import Architecture
from resist_hvd.training.run import Progress

LONGEST = 256 * 2**20
"""Bytes; that of a run on thousands of workers has a few million."""


def seal(manifest: dict[str, Any]) -> str:
    """Return the checksum of what a manifest says, whatever its layout; its own entry does not count."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a manifest says.

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError: it is none.
    """
    if path.stat().st_size > LONGEST:
        raise ValueError("it is longer than any manifest")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise ValueError("it is no object")
    return manifest


def modern(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest of format 1 says in today's terms: its one family of networks, its scales of sections.

    Raises:
        KeyError, TypeError, ValueError: something that it always has is missing or of another type.
    """
    if manifest["format"] != 1:
        return manifest
    network = {"family": "preact_resnet", **manifest["architecture"]}
    scales = manifest.get("scales")
    if scales is not None:
        decks = Architecture.from_json(manifest["architecture"]).decks
        scales = [scale for scale, blocks in zip(scales, decks, strict=True) if blocks]
    return {**manifest, "network": network, "scales": scales}


def are_pairs(value: Any) -> bool:
    """Return whether something read is a list of widths and heights."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, list) and len(each) == 2 for each in value)
        and all(type(side) in (int, float) and 0 < side < math.inf for each in value for side in each)
    )


def strange_in(manifest: dict[str, Any]) -> str:
    """Return what of a manifest this version cannot go on from, empty where it understands all of it.

    Raises:
        KeyError, TypeError, AttributeError: something that every version writes is missing or of another type.
    """
    known = {field.name: field.default for field in fields(Progress)}
    progress = manifest["progress"]
    if unknown := sorted(set(progress) - set(known)):
        return f"its progress has {unknown[0]}, which this one does not know"
    for name, value in progress.items():
        sound = are_pairs(value) if name == "anchors" else type(value) in (int, float)
        if not (sound or (value is None and known[name] is None)):
            return f"its progress has {name} {value!r}"
    workers = manifest["workers"]
    samples = progress["samples"]
    if not (type(workers) is int and workers >= 1 and "round" in progress and type(samples) is int and samples >= 0):
        return "it does not say how far the run had come"
    classes = manifest["classes"]
    if len(manifest["partition"]) != workers:
        return f"it has {len(manifest['partition'])} parts for {workers} workers"
    if not all(isinstance(held, list) for held in manifest["partition"]):
        return "it does not say who held which blocks"
    scales = manifest.get("scales") or []
    if not all(type(scale) is float and 0 < scale <= 1 for scale in scales):
        return f"its blocks are scaled by {scales!r}"
    if len(classes) != manifest["network"]["classes"]:
        return f"it has {len(classes)} classes, and its network {manifest['network']['classes']}"
    for name in ("method", "data"):
        if not isinstance(manifest[name], str):
            return f"its {name} is {manifest[name]!r}"
    missing = {f"worker-{rank:04d}.safetensors" for rank in range(workers)} - set(manifest["files"])
    if missing:
        return f"it has no {min(missing)}"
    for name, entry in manifest["files"].items():
        if os.sep in name or name.startswith(".") or not all(isinstance(said, str) for said in entry["tensors"]):
            return f"it has a file {name!r}"
    return ""
