"""Makes the virtual environment for launch/setup. The standard library alone: it runs before anything is there."""
