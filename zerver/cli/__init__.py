"""The command line: `zerver serve | check | routes | graph`."""

from zerver.cli.main import main as main
