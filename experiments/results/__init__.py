"""The paper in miniature: `make results` makes the figures of docs/results.md."""
