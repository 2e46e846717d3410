"""The live page: what a server does, shown by the server itself, to whoever has its token."""

from zerver.ui.access import Access as Access
from zerver.ui.access import new_token as new_token
from zerver.ui.archive import Archive as Archive
from zerver.ui.beacon import Live as Live
from zerver.ui.beacon import beacon as beacon
from zerver.ui.beacon import read_beacon as read_beacon
from zerver.ui.overview import Server as Server
from zerver.ui.page import Page as Page
