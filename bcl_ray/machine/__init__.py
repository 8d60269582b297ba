"""The machine and process, below all other packages.

container, user, allocator    limits of the container, the user's folders, memory of the process
versions         versions, cluster and job
parallel, amounts    work for several processes, and counts from fractions of CPUs
errors, messages, csv_text    kinds of errors, and texts for people and programs
"""
