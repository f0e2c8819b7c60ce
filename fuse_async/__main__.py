"""``python -m fuse_async`` is the command ``fuse-async``."""

import sys

from fuse_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
