"""`python -m revision COMMAND`, hence `accelerate launch -m revision COMMAND`."""

import sys

from revision.cli import main

sys.exit(main())
