"""`python -m histoscribe`: the command line, for where the program itself is not on the path."""

import sys

from histoscribe.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
