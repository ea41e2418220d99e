"""What tests share: small real studies, networks and images, and what breaks them.

Fixtures stand in the conftest files; everything here is imported by its full name:
``from tests.kit.studies import tiny_spec``.
"""
