"""`python -m pipelines.cli` is the command `smec`, where that is not installed."""

from pipelines.cli.process import main

main()
