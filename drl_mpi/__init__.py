"""Distributed deep reinforcement learning over MPI."""
