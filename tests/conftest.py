"""What all tests share: properties are tried on the same examples each time, however slowly."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
