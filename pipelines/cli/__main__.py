"""`python -m pipelines.cli` is the command `smec`, where that is not installed."""

from pipelines.cli.main import main

main()
