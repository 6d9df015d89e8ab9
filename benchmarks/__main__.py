"""`./dev bench`: run the benchmarks one after another, each in its own process, then generate docs/performance.md.

`./dev bench NAME [options]` runs one, `./dev bench NAME --help` lists its options, `./dev bench report` generates the
page. `--results FILE` without a NAME writes everything to that file. What was measured today is not measured again: an
interrupted run continues where it stopped.
"""

from __future__ import annotations

import subprocess
import sys

# A good hour on two idle cores, two thirds of it for inference.
ALL = ("inference", "int8", "scaling", "training", "evaluate", "loading", "startup", "report")
# These print a table of their own; download requires nginx, scale_out ray.
OTHERS = ("checkpoints", "download", "export", "scale_out")


def main() -> int:
    names, options = sys.argv[1:2], sys.argv[2:]
    if not names or (names[0].startswith("-") and names[0] not in ("-h", "--help")):
        names, options = list(ALL), sys.argv[1:]
    elif names[0] not in (*ALL, *OTHERS):
        print(f"{__doc__}\nThe benchmarks: {', '.join(ALL)}; only by name: {', '.join(OTHERS)}")
        return 0 if names[0].startswith("-") else 2
    for name in names:
        print(f"\n=== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
