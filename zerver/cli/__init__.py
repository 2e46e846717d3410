"""The command line: `zerver serve | check | routes | explain | graph`."""

from zerver.cli.main import main as main
