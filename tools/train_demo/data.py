"""The two data sets, their fixed splits, and the image arithmetic of Llama 4 at tile 32."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).parent
HELD_OUT_CHAPTERS = 60
HELD_OUT_DIGITS = 360
TEXT_SPLIT_SEED = 1611
DIGIT_SPLIT_SEED = 1998
TILE = 32
TOKENS_PER_TILE = 4

ASK_ONE = "Which digit is this?"
ASK_TWO = "Which digits are these?"


@dataclass(frozen=True)
class Chapter:
    name: str
    text: str  # one verse a line, no verse numbers, no newline at the end


def load_chapters() -> list[Chapter]:
    raw = lzma.decompress((HERE / "kjv.txt.xz").read_bytes()).decode()
    chapters = []
    for block in raw.removeprefix("# ").rstrip("\n").split("\n# "):
        name, text = block.split("\n", 1)
        chapters.append(Chapter(name, text))
    return chapters


def split_chapters(chapters: list[Chapter]) -> tuple[list[Chapter], list[Chapter]]:
    rng = np.random.default_rng(TEXT_SPLIT_SEED)
    held = set(rng.permutation(len(chapters))[:HELD_OUT_CHAPTERS].tolist())
    train = [c for i, c in enumerate(chapters) if i not in held]
    return train, [c for i, c in enumerate(chapters) if i in held]


def load_sheet(sheet: Path, labels: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits [N, 8, 8] uint8 and their labels, from a PNG sheet read row by row."""
    text = "".join(labels.read_text().split())
    pixels = torch.from_numpy(np.array(Image.open(sheet).convert("L")))
    rows, cols = pixels.shape[0] // 8, pixels.shape[1] // 8
    tiles = pixels.view(rows, 8, cols, 8).transpose(1, 2).reshape(-1, 8, 8)
    return tiles[: len(text)].clone(), torch.tensor([int(c) for c in text])


def save_sheet(
    sheet: Path, labels: Path, digits: torch.Tensor, values: torch.Tensor, cols: int
) -> None:
    rows = -(-len(digits) // cols)
    padded = torch.zeros(rows * cols, 8, 8, dtype=torch.uint8)
    padded[: len(digits)] = digits
    pixels = padded.view(rows, cols, 8, 8).transpose(1, 2).reshape(rows * 8, cols * 8)
    Image.fromarray(pixels.numpy()).save(sheet, optimize=True)
    text = "".join(str(int(v)) for v in values)
    labels.write_text("".join(text[i : i + cols] + "\n" for i in range(0, len(text), cols)))


@dataclass(frozen=True)
class Digits:
    images: torch.Tensor  # [N, 8, 8] uint8, 0 = background
    labels: torch.Tensor  # [N] int64


def load_digits() -> tuple[Digits, Digits]:
    images, labels = load_sheet(HERE / "digits.png", HERE / "digits.txt")
    order = np.random.default_rng(DIGIT_SPLIT_SEED).permutation(len(images))
    held = torch.from_numpy(np.sort(order[:HELD_OUT_DIGITS]))
    train = torch.from_numpy(np.sort(order[HELD_OUT_DIGITS:]))
    return Digits(images[train], labels[train]), Digits(images[held], labels[held])


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """[N, 8, 8] uint8 → [N, 32, 32] uint8, the bilinear resize that the image processor does."""
    x = F.interpolate(images[:, None].float(), (TILE, TILE), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)[:, 0]


def shrink_to_tile(canvas: torch.Tensor) -> torch.Tensor:
    """[N, H, W] in 0…1 → [N, 32, 32]: the global tile, aspect ratio ignored."""
    return F.interpolate(canvas[:, None], (TILE, TILE), mode="bilinear", antialias=True)[:, 0]


def normalise(gray: torch.Tensor) -> torch.Tensor:
    """[N, 32, 32] in 0…1 → [N, 3, 32, 32] in −1…1."""
    return ((gray - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1).contiguous()


def two_tile_image(first: torch.Tensor, second: torch.Tensor, vertical: bool) -> torch.Tensor:
    """Two [N, 32, 32] digits in 0…1 → tiles [3N, 32, 32]: both grid tiles, then the global one."""
    canvas = torch.cat([first, second], dim=1 if vertical else 2)
    return torch.stack([first, second, shrink_to_tile(canvas)], 1).reshape(-1, TILE, TILE)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[N, 8, 8] uint8 → [N, 32, 32] in 0…1; a quarter stays as it is."""
    n = len(images)
    clean = enlarge(images).float() / 255

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, shear = uniform(-0.26, 0.26), uniform(-0.2, 0.2)
    sx, sy = 1 / uniform(0.8, 1.15), 1 / uniform(0.8, 1.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([sx * cos, sx * (shear * cos - sin), uniform(-0.18, 0.18)], -1),
            torch.stack([sy * sin, sy * (shear * sin + cos), uniform(-0.18, 0.18)], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, TILE, TILE], align_corners=False)
    warped = F.grid_sample(clean[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
    warped = warped * uniform(0.75, 1.2)[:, None, None]
    coarse = torch.randn(n, 1, 8, 8, generator=generator) * uniform(0, 0.12)[:, None, None, None]
    warped = warped + F.interpolate(coarse, (TILE, TILE), mode="bilinear")[:, 0]
    keep = torch.rand(n, generator=generator) < 0.25
    return torch.where(keep[:, None, None], clean, warped.clamp(0, 1))


def image_block(rows: int = 1, cols: int = 1) -> str:
    """The prompt text that stands for one image of rows × cols tiles."""
    patches = "<|patch|>" * TOKENS_PER_TILE
    grid = ""
    if rows * cols > 1:
        grid = (("<|tile_x_separator|>".join([patches] * cols)) + "<|tile_y_separator|>") * rows
    return f"<|image_start|>{grid}<|image|>{patches}<|image_end|>"


def chat(user: str, assistant: str = "") -> str:
    """One user turn and the head of the reply (with the reply and its end, if given)."""
    turn = f"<|begin_of_text|><|header_start|>user<|header_end|>\n\n{user}<|eot|>"
    reply = "<|header_start|>assistant<|header_end|>\n\n"
    return turn + reply + (f"{assistant}<|eot|>" if assistant else "")


FORMS = {
    "one": chat(image_block() + ASK_ONE),
    "wide": chat(image_block(1, 2) + ASK_TWO),
    "tall": chat(image_block(2, 1) + ASK_TWO),
    "two_images": chat(image_block() + image_block() + ASK_TWO),
}
