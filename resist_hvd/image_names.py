"""Names of image files and of what lies about beside them: one rule for all that lists a folder of images."""

from __future__ import annotations

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Endings of image files' names, in any case: the formats that every reader here decodes to the same pixels."""

LITTER = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that file servers and archives leave behind, which are no classes."""

_ENCODED_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


def is_image_name(name: str | bytes) -> bool:
    """Return whether a file of this name is taken for an image: it is not hidden and has one of `SUFFIXES`."""
    if isinstance(name, bytes):
        return not name.startswith(b".") and name.lower().endswith(_ENCODED_SUFFIXES)
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
