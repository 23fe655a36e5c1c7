"""Damaged packs by the thousand: nothing but a clear error may come of one.

Run it from the root of the checkout:

    python benchmarks/fuzz_packs.py --minutes 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # the mutations are those of the tests

from tests.packs.fuzzing import for_seconds, fuzz  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="a failure names the seed and the number of the pack")
    arguments = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix="fuzz_packs.")), time.monotonic()
    counts = fuzz(folder, arguments.seed, for_seconds(60 * arguments.minutes))
    for what, count in sorted(counts.items()):
        print(f"{count:8d}  {what}")
    tried = sum(count for what, count in counts.items() if what.startswith(("opened", "refused")))
    print(f"{tried} packs in {time.monotonic() - started:.0f} s, seed {arguments.seed}: nothing but clear errors")


if __name__ == "__main__":
    main()
