"""`./dev bench`: the benchmarks in turn, each in a process of its own, then the page of the docs that shows them.

`./dev bench NAME [options]` runs one, `./dev bench NAME --help` tells its options, `./dev bench report` makes the page.
What was measured already today is not measured again: a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

# About 25 minutes on two cores, the first half of it for inference.
ALL = ("inference", "growth", "loading", "waiting", "report")
# These print a table of their own; the second needs nginx.
OTHERS = ("checkpoints", "download")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=(*ALL, *OTHERS), help="without it: all of the first five")
    known = sys.argv[1:2]
    name = parser.parse_args(known).name
    for one in [name] if name else ALL:
        print(f"\n=== {one}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{one}", *sys.argv[2:]], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
