"""`python -m zerver.cli`: the `zerver` command, for an environment whose scripts are not on PATH."""

from zerver.cli.main import main

main(prog_name="zerver")
