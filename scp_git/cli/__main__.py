"""``python -m scp_git.cli`` is the command ``scp-git``."""

import sys

from scp_git.cli.entry import main

sys.exit(main())
