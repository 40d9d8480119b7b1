"""Images decoded from the disk batch by batch."""
