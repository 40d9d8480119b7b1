"""Images with boxes: Pascal VOC's layout."""
