"""The commands as functions, which `import bcl_ray` provides.

They take and return Python objects, show the same progress as the commands, and raise errors with
the same messages.
"""
