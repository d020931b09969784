"""The documentation site: pages gathered, built by Zensical, and checked. `python -m website`.

Zensical is what the authors of Material for MkDocs maintain: that theme has its last fixes in May 2027,
and MkDocs below it has no maintainer. What is written here is only what it does not do itself.
"""
