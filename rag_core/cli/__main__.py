"""`python -m rag_core.cli`: the command where its script is not on the path."""

from rag_core.cli.commands import main

main()
