"""The training loop: a step is text windows, digit questions and a few chats."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .batches import ChatBatches, DigitBatches, TextBatches
from .data import Chapter, Digits, load_chapters, load_digits, split_chapters
from .evaluate import bits_per_byte, digits_correct
from .model import DemoLlama4, TextShape, VisionShape
from .optim import build_optimisers
from .tokenizer import SPECIAL_ID, train_tokenizer


@dataclass(frozen=True)
class Settings:
    steps: int = 1800
    minutes: float = math.inf  # ends the schedule early if the steps take longer than this
    seed: int = 4
    windows: int = 4
    singles: int = 32
    pairs: tuple[tuple[str, int], ...] = (("wide", 4), ("tall", 2), ("two_images", 2))
    chats: int = 4
    digit_weight: float = 0.8
    pair_weight: float = 0.3
    chat_weight: float = 0.1
    balance_weight: float = 0.02
    warmup: int = 40
    clip: float = 1.0
    save_minutes: float = 2.0
    evaluate_minutes: float = 6.0


@dataclass(frozen=True)
class Data:
    train_text: list[Chapter]
    held_text: list[Chapter]
    train_digits: Digits
    held_digits: Digits

    @staticmethod
    def load() -> Data:
        return Data(*split_chapters(load_chapters()), *load_digits())


def learning_rate(step: int, progress: float, warmup: int) -> float:
    """Warm-up, flat to 40 %, then a cosine down to 2 % of the peak."""
    decay = min(max((progress - 0.4) / 0.6, 0.0), 1.0)
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decay)))


class Trainer:
    """One of `world` equal workers; they meet once a step, in one all-reduce of the gradients.

    Worker processes of one thread each lose far less on a busy machine than one process whose
    threads meet in every operator.
    """

    def __init__(
        self, settings: Settings, data: Data, folder: Path, rank: int = 0, world: int = 1
    ) -> None:
        self.settings, self.data, self.folder = settings, data, folder
        self.rank, self.world = rank, world
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.tokenizer = train_tokenizer(data.train_text)
        self.model = DemoLlama4(TextShape(), VisionShape(), SPECIAL_ID["<|patch|>"])
        self.optimisers = build_optimisers(self.model)
        self.text = TextBatches(self.tokenizer, data.train_text, settings.seed)
        self.digits = DigitBatches(self.tokenizer, data.train_digits)
        self.chats = ChatBatches(self.tokenizer, data.train_text)
        self.step, self.elapsed = 0, 0.0

    @property
    def progress(self) -> float:
        s = self.settings
        return max(self.step / s.steps, self.elapsed / (60 * s.minutes))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        # A kill while writing must not cost the checkpoint before it.
        torch.save(state, self.folder / "state.tmp")
        os.replace(self.folder / "state.tmp", self.folder / "state.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def loss(self, inputs: Tensor, targets: Tensor, tiles: Tensor | None = None) -> Tensor:
        learned = targets >= 0
        logits = self.model.logits(self.model(inputs, tiles)[learned])
        return F.cross_entropy(logits, targets[learned])

    def share(self, count: int) -> int:
        return len(range(self.rank, count, self.world))

    def backward(self) -> dict[str, float]:
        s = self.settings
        # Batches depend on seed, step and rank alone, so a resumed run sees the same data.
        seed = (s.seed * 1_000_003 + self.step) * 64 + self.rank
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = self.text.batch(self.step, s.windows)
        text = self.loss(inputs[self.rank :: self.world], targets[self.rank :: self.world])
        (text + s.balance_weight * self.model.balance_loss()).backward()
        digits = self.loss(*self.digits.batch({"one": self.share(s.singles)}, generator))
        (s.digit_weight * digits).backward()
        counts = {form: self.share(n) for form, n in s.pairs}
        pairs = self.loss(*self.digits.batch(counts, generator))
        (s.pair_weight * pairs).backward()
        chats = self.loss(*self.chats.batch(self.share(s.chats), generator))
        (s.chat_weight * chats).backward()
        losses = {"text": text, "digits": digits, "pairs": pairs, "chats": chats}
        return {name: loss.item() for name, loss in losses.items()}

    def average_gradients(self) -> None:
        """Also tells every worker the clock of the first, which the schedule follows."""
        grads = [p.grad for p in self.model.parameters()]
        clock = torch.tensor([self.elapsed if self.rank == 0 else 0.0])
        flat = torch.cat([g.flatten() for g in grads] + [clock])
        dist.all_reduce(flat)
        self.elapsed = flat[-1].item()
        flat /= self.world
        for g, mean in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))

    def train_step(self) -> dict[str, float]:
        s, scale = self.settings, learning_rate(self.step, self.progress, self.settings.warmup)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * scale
            optimiser.zero_grad()
        self.model.train()
        losses = self.backward()
        if self.world > 1:
            self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        return losses

    def report(self, losses: dict[str, float], **more: object) -> None:
        row = {"step": self.step, "seconds": round(self.elapsed), **losses, **more}
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def evaluate(self, losses: dict[str, float]) -> None:
        held = self.data.held_digits
        bits = bits_per_byte(self.model, self.tokenizer, self.data.held_text[:12])
        right = digits_correct(self.model, self.tokenizer, held, ("one", "wide"))
        self.report(losses, bits_per_byte_12=bits, correct=right)

    def run(self) -> None:
        s, started = self.settings, time.monotonic() - self.elapsed
        saved = evaluated = self.elapsed
        while self.progress < 1:
            self.elapsed = time.monotonic() - started
            losses = self.train_step()
            self.step += 1
            if self.rank:
                continue
            if self.step % 20 == 0:
                self.report(losses)
            if self.elapsed - saved > 60 * s.save_minutes:
                self.save()
                saved = self.elapsed
            if self.elapsed - evaluated > 60 * s.evaluate_minutes:
                self.evaluate(losses)
                evaluated = self.elapsed
        if self.rank == 0:
            self.save()
