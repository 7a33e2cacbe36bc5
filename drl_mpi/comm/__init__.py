"""Transport: the only package that calls MPI, and it knows nothing of reinforcement learning.

Import its modules directly: ``record`` needs no MPI, the others do.
"""
