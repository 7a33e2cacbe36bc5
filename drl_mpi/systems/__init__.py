"""The design space: one file per system, its published settings and its four choices."""
