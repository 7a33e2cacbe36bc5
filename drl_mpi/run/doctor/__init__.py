"""Looks at a machine or an allocation as the jobs would meet it, and says what to mend.

``facts`` names what is gathered, on every rank by ``look`` and ``files``; ``survey`` brings it
together at rank 0 and measures the messages; the ``checks`` are pure functions from that to
findings; ``main`` is the command line.
"""
