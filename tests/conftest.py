"""What all tests share: how properties are sought, and how a test says how many ranks it needs."""

from hypothesis import settings

settings.register_profile("resist_hvd", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("resist_hvd")
