"""The loops of the roles: what an actor, a learner and a server do, whatever the system.

Import its modules directly: a server must not load what learners need.
"""
