"""Kinds of files that a library reads: one module a kind, whose `read` yields sections."""
