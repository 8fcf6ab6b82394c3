"""`python -m tools.train_demo`: train, then write the checkpoint and the data of the demo."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch.multiprocessing as mp

from .train import Settings
from .worker import work


def main() -> None:
    root = Path(__file__).parents[2]
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo", description=__doc__)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=root / "l4kernels" / "demo",
        help="gets checkpoint/ and data/ (default: l4kernels/demo)",
    )
    add(
        "--scratch",
        type=Path,
        default=root / "build" / "train_demo",
        help="state and log of the run, for --resume (default: build/train_demo)",
    )
    add("--steps", type=int, default=Settings.steps)
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="fit the learning-rate schedule into this time, if shorter",
    )
    add("--workers", type=int, default=2, help="processes that share each step")
    add("--threads", type=int, default=1, help="threads of each process")
    add("--seed", type=int, default=Settings.seed)
    add("--resume", action="store_true", help="go on from the state in --scratch")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    (args.scratch / "store").unlink(missing_ok=True)
    if args.workers > 1:
        mp.spawn(work, (args,), nprocs=args.workers)
    else:
        work(0, args)


if __name__ == "__main__":
    main()
