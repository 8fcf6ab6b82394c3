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
from torch import Tensor, nn

from .batches import ChatBatches, DigitBatches, TextBatches
from .data import (
    Chapter,
    Digits,
    augment,
    load_chapters,
    load_digits,
    normalise,
    split_chapters,
)
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
    singles: int = 16
    pairs: tuple[tuple[str, int], ...] = (("wide", 2), ("tall", 2), ("two_images", 2))
    chats: int = 2
    digit_weight: float = 0.8
    pair_weight: float = 0.3
    chat_weight: float = 0.1
    balance_weight: float = 0.02
    warmup: int = 40
    bigram_steps: int = 150
    vision_steps: int = 150  # the vision tower alone, before anything else
    vision_batch: int = 128
    vision_rate: float = 0.25  # of the peak learning rates, once the tower has had its own steps
    grow_at: tuple[float, ...] = (0.25, 0.55)  # progress at which the depth doubles: 2, 4, 8 layers
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
    """Warm-up, flat to half time, then a cosine down to 2 % of the peak."""
    decay = min(max((progress - 0.5) / 0.5, 0.0), 1.0)
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
        self.optimisers = build_optimisers(self.model, self.settings.vision_rate)
        self.text = TextBatches(self.tokenizer, data.train_text, settings.seed)
        self.digits = DigitBatches(self.tokenizer, data.train_digits)
        self.chats = ChatBatches(self.tokenizer, data.train_text)
        self.step, self.elapsed, self.started = 0, 0.0, time.monotonic()
        self.model.language_model.model.depth = self.depth_wanted()

    @property
    def progress(self) -> float:
        s = self.settings
        return max(self.step / s.steps, self.elapsed / (60 * s.minutes))

    def depth_wanted(self) -> int:
        later = sum(self.progress < at for at in self.settings.grow_at)
        return self.model.text.layers >> later

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "depth": self.model.language_model.model.depth,
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
        self.model.language_model.model.depth = state["depth"]

    def loss(self, inputs: Tensor, targets: Tensor, tiles: Tensor | None = None) -> Tensor:
        learned = targets >= 0
        logits = self.model.logits(self.model(inputs, tiles)[learned])
        return F.cross_entropy(logits, targets[learned])

    def pretrain_bigrams(self) -> None:
        """Fit embeddings and head to the table of token pairs: seconds, and a third of the way."""
        model, stream = self.model.language_model, self.text.stream
        vocab = self.model.text.vocab
        pairs = torch.bincount(stream[:-1] * vocab + stream[1:], minlength=vocab * vocab)
        share = pairs.view(vocab, vocab) / pairs.sum()
        params = [model.model.embed_tokens.weight, model.model.norm.weight, model.lm_head.weight]
        optimiser = torch.optim.Adam(params, lr=2e-2, betas=(0.9, 0.98))
        for step in range(self.settings.bigram_steps):
            optimiser.param_groups[0]["lr"] = 2e-2 * (1.02 - step / self.settings.bigram_steps)
            optimiser.zero_grad()
            logits = model.lm_head(model.model.norm(model.model.embed_tokens.weight))
            loss = -(share * logits.log_softmax(-1)).sum()
            loss.backward()
            optimiser.step()
        model.zero_grad()
        if self.rank == 0:
            print(json.dumps({"bigram_loss": round(loss.item(), 4)}), flush=True)

    def pretrain_vision(self) -> None:
        """Teach the tower digits through a throw-away linear head: a tenth of a chat's cost."""
        s, model = self.settings, self.model
        head = nn.Linear(4 * model.text.hidden, 10)
        optimisers = build_optimisers(nn.ModuleDict({"model": model, "head": head}), 1.0)
        for step in range(s.vision_steps):
            generator = self.generator(s.steps + step)
            count = self.share(s.vision_batch)
            pick = torch.randint(len(self.data.train_digits.labels), (count,), generator=generator)
            images = normalise(augment(self.data.train_digits.images[pick], generator))
            labels = self.data.train_digits.labels[pick]
            features = F.rms_norm(model.image_tokens(images), (model.text.hidden,)).flatten(1)
            loss = F.cross_entropy(head(features), labels)
            loss.backward()
            scale = min(1.0, (step + 1) / s.warmup) * (1.05 - step / s.vision_steps)
            self.update(optimisers, scale)
            if self.rank == 0 and step % 50 == 49:
                print(json.dumps({"vision_step": step, "loss": round(loss.item(), 4)}), flush=True)

    def update(self, optimisers: list[torch.optim.Optimizer], scale: float) -> None:
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        params = [p for group in groups for p in group["params"] if p.grad is not None]
        clock = time.monotonic() - self.started
        self.elapsed = self.average_gradients(params, clock) if self.world > 1 else clock
        torch.nn.utils.clip_grad_norm_(params, self.settings.clip)
        for group in groups:
            group["lr"] = group["peak_lr"] * scale
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()

    def generator(self, step: int) -> torch.Generator:
        """Batches depend on seed, step and rank alone, so a resumed run sees the same data."""
        seed = (self.settings.seed * 1_000_003 + step) * 64 + self.rank
        return torch.Generator().manual_seed(seed)

    def share(self, count: int) -> int:
        return len(range(self.rank, count, self.world))

    def backward(self) -> dict[str, float]:
        s = self.settings
        generator = self.generator(self.step)
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

    def average_gradients(self, params: list[nn.Parameter], clock: float) -> float:
        """Returns the clock of the first worker: the schedule must be the same for all."""
        first = torch.tensor([clock if self.rank == 0 else 0.0])
        flat = torch.cat([p.grad.flatten() for p in params] + [first])
        dist.all_reduce(flat)
        clock = flat[-1].item()
        flat /= self.world
        for p, mean in zip(params, flat[:-1].split([p.numel() for p in params]), strict=True):
            p.grad.copy_(mean.view_as(p))
        return clock

    def train_step(self) -> dict[str, float]:
        text = self.model.language_model.model
        while text.depth < self.depth_wanted():
            text.grow()
        self.model.train()
        losses = self.backward()
        scale = learning_rate(self.step, self.progress, self.settings.warmup)
        self.update(self.optimisers, scale)
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
        s = self.settings
        self.started = time.monotonic() - self.elapsed
        if self.step == 0:
            self.pretrain_bigrams()
            self.pretrain_vision()
        saved = evaluated = self.elapsed
        while self.progress < 1:
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
