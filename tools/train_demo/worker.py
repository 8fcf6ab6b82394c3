"""What each process runs; a module of its own because spawned processes import it."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

from .export import export
from .train import Data, Settings, Trainer


def work(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        store = f"file://{args.scratch.resolve()}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.workers)
    settings = Settings(steps=args.steps, minutes=args.minutes, seed=args.seed)
    trainer = Trainer(settings, Data.load(), args.scratch, rank, args.workers)
    if args.resume:
        trainer.resume()
    trainer.run()
    if rank == 0:
        export(trainer, args.out)
    if args.workers > 1:
        dist.destroy_process_group()
