"""Speed and memory against peers on the same weights and inputs; `make bench`.

See docs/performance.md.
"""
