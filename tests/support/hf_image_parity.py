"""Compares our image processor with Hugging Face's; run by test_image_processor.py in a process
of its own, because theirs needs torchvision, which must not be visible to other tests.

torchvision's C++ operators are missing on a CPU build of torch. Declaring their schemas is enough
for its transforms to work.
"""

import json
import sys

import torch

OPERATORS = (
    "nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d",
)  # fmt: skip
SIZES = [
    (30, 2000), (4000, 300), (100, 80), (336, 336), (337, 336), (336, 337), (400, 300), (640, 480),
    (672, 672), (673, 671), (1024, 768), (1920, 1080), (3000, 1000), (1500, 1500), (500, 2000),
    (1, 1), (1, 500), (700, 2), (17, 23), (335, 335), (1344, 1344), (1345, 1344), (2000, 2000),
    (5376, 336), (5400, 300), (999, 333), (333, 1000), (720, 1280), (1280, 853), (1048, 765),
    (801, 1203), (612, 1001), (50, 337), (1017, 1811), (1009, 1511),
]  # fmt: skip


def load_processor():
    try:
        import torchvision
    except (RuntimeError, ImportError):
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
            library.define(f"_{name}_backward(Tensor x) -> Tensor")
        import torchvision  # noqa: F401

        load_processor.library = library  # keeps the schemas alive
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor

    return Llama4ImageProcessor


def canvas_mismatches(count: int) -> list:
    """Random sizes, without pixels: canvas and size inside it, ours against theirs."""
    from transformers.models.llama4 import image_processing_llama4 as hf

    from l4kernels.prompt.image_processor import ImageProcessor, canvases

    ours = ImageProcessor()
    sides = torch.tensor(canvases(16)) * 336
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for size in (torch.rand(count, 2, generator=generator) * 8.3).exp().int().tolist():
        height, width = size = (size[0] + 1, size[1] + 1)
        canvas = hf.get_best_fit(size, sides)
        limits = min(max(height, 336), canvas[0]), min(max(width, 336), canvas[1])
        inner = tuple(max(int(n), 1) for n in hf.get_max_res_without_distortion(size, limits))
        grid = tuple(n // 336 for n in canvas.tolist())
        if (grid, inner) != (ours.grid(*size), ours.resized(*size)):
            wrong.append([size, grid, inner, ours.grid(*size), ours.resized(*size)])
    return wrong


def photo(width: int, height: int) -> torch.Tensor:
    """Gradients, edges and noise over the full range, uint8 [3, H, W]."""
    generator = torch.Generator().manual_seed(width * 10_000 + height)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    waves = torch.stack([x * 3 + y, (x // 9 + y // 5) * 60, x * y // 64]) % 256
    noise = torch.randint(0, 32, (3, height, width), generator=generator)
    return (waves + noise).clamp(0, 255).to(torch.uint8)


def main() -> None:
    torch.set_num_threads(1)
    from l4kernels.prompt.image_processor import ImageProcessor

    theirs = load_processor()(do_rescale=False, do_normalize=False)
    rows = []
    wrong = canvas_mismatches(1000)
    for tile, limit in ((336, 16), (32, 5)):
        ours = ImageProcessor(tile_size=tile, max_tiles=limit)
        for width, height in SIZES if tile == 336 else SIZES[2:12]:
            image = photo(width, height)
            got = ours.tiles(image)
            want = theirs(
                image,
                size={"height": tile, "width": tile},
                max_patches=limit,
                return_tensors="pt",
            )
            same = want["pixel_values"].shape == got.shape
            difference = (got * 127.5 + 127.5 - want["pixel_values"]).abs().max() if same else 999
            rows.append(
                {
                    "tile": tile,
                    "size": [width, height],
                    "grid": ours.grid(height, width),
                    "hf_grid": want["aspect_ratios"][0].tolist(),
                    "difference": float(difference),
                }
            )
    settings = repr(ImageProcessor.from_dict(json.loads(load_processor()().to_json_string())))
    print(json.dumps({"rows": rows, "canvas_mismatches": wrong, "settings": settings}))


if __name__ == "__main__":
    main()
