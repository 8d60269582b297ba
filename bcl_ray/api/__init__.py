"""What the command line does, as functions: `import bcl_ray` has them all.

They take and return plain objects, show their progress as the commands do, and raise the errors
whose texts the commands print.
"""
