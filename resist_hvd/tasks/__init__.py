"""Tasks: what a network is to learn, and by which figure it is judged."""
