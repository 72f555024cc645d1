"""Makes the repository's ``benchmarks`` importable (this folder is no package, or it would be that)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
