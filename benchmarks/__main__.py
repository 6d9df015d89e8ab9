"""`./dev bench`: the benchmarks in turn, each in a process of its own, then the page of the docs that shows them.

`./dev bench NAME [options]` runs one, `./dev bench NAME --help` tells its options, `./dev bench report` makes the page.
`--results FILE` without a name keeps everything in that file.
What was measured already today is not measured again: a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys

# A good hour on two idle cores, two thirds of it for inference.
ALL = ("inference", "scaling", "loading", "startup", "report")
# These print a table of their own; the second needs nginx.
OTHERS = ("checkpoints", "download")


def main() -> int:
    chosen, options = sys.argv[1:2], sys.argv[2:]
    if not chosen or (chosen[0].startswith("-") and chosen[0] not in ("-h", "--help")):
        chosen, options = list(ALL), sys.argv[1:]
    elif chosen[0] not in (*ALL, *OTHERS):
        print(f"{__doc__}\nThe benchmarks: {', '.join(ALL)}; only by name: {', '.join(OTHERS)}")
        return 0 if chosen[0].startswith("-") else 2
    for name in chosen:
        print(f"\n=== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
