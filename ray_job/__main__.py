"""`python -m ray_job`."""

import sys

from ray_job.cli import main

sys.exit(main())
