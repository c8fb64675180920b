"""`python -m que …` from the root, `python ../que …` from code/, `python /any/path/que …` from anywhere."""

import sys
from pathlib import Path

if not __package__:  # run by path: the folder itself is on sys.path then, where its modules would be top-level ones
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from que.cli import main

if __name__ == "__main__":
    sys.exit(main())
