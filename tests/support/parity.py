"""Random tiny Llama 4 models in transformers and here, side by side.

`python tests/support/parity.py --cases 200` runs many and prints the worst difference;
`test_model.py` and `test_vision_model.py` run a sample.
"""

import argparse
import dataclasses
import random
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import l4kernels

TOLERANCE = 1e-4
VOCAB, IMAGE_TOKEN = 300, 299
TILE, CHANNELS, TOKENS_PER_TILE = 32, 3, 4
GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 2), (3, 3), (2, 4), (3, 5)]

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Case:
    """One random model and prompt; print it to reproduce a failure."""

    seed: int = 0
    layers: int = 4
    hidden: int = 64
    heads: tuple[int, int] = (5, 1)
    experts: int = 4
    top_k: int = 1
    moe_step: int = 1
    qk_norm: bool = True
    scaled_rope: bool = True
    chunk: int = 8
    floor_scale: int = 8
    temperature_tuning: bool = True
    length: int = 20
    batch: int = 1
    images: tuple[tuple[int, int], ...] = ()
    vision: bool = False
    fields: tuple[tuple[str, Any], ...] = ()  # of the text config, beside the above

    @property
    def tiles(self) -> int:
        """Tiles of all images; those of several tiles carry a global tile, too."""
        return sum(r * c + (r * c > 1) for r, c in self.images)


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    chunk = rng.choice([4, 7, 8, 64])
    boundaries = rng.randint(0, 4)
    images = tuple(rng.choice(GRIDS) for _ in range(rng.choice([0, 0, 1, 2, 3])))
    maverick = rng.random() < 0.4
    case = Case(
        seed=seed,
        layers=rng.choice([3, 4, 5]),
        hidden=rng.choice([48, 64, 128]),
        heads=rng.choice([(5, 1), (4, 2), (2, 2), (10, 2)]),
        experts=rng.choice([2, 4, 8]),
        top_k=rng.choice([1, 1, 2]),
        moe_step=2 if maverick else 1,
        qk_norm=rng.random() < (0.2 if maverick else 0.8),
        scaled_rope=rng.random() < 0.5,
        chunk=chunk,
        floor_scale=rng.choice([3, 8, 8192]),
        temperature_tuning=rng.random() < 0.8,
        length=boundaries * chunk + rng.randint(1, chunk),
        batch=rng.choice([1, 1, 2]),
        images=images,
        vision=bool(images) or rng.random() < 0.3,
    )
    patches = case.tiles * TOKENS_PER_TILE
    length = max(case.length, -(-patches // case.batch) + 2)
    return dataclasses.replace(case, length=length)


def hf_config(case: Case):
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    if case.scaled_rope:
        rope |= {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 1.0, "original_max_position_embeddings": 64}
    text = {
        "vocab_size": VOCAB,
        "hidden_size": case.hidden,
        "intermediate_size": 40,
        "intermediate_size_mlp": 72,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads[0],
        "num_key_value_heads": case.heads[1],
        "head_dim": 128,
        "num_local_experts": case.experts,
        "num_experts_per_tok": case.top_k,
        "interleave_moe_layer_step": case.moe_step,
        "use_qk_norm": case.qk_norm,
        "attention_chunk_size": case.chunk,
        "attn_temperature_tuning": case.temperature_tuning,
        "floor_scale": case.floor_scale,
        "rope_parameters": rope,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **dict(case.fields),
    }
    if not case.vision:
        return transformers.Llama4TextConfig(**text)
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": TILE,
        "patch_size": 8,
        "num_channels": CHANNELS,
        "projector_input_dim": 48,
        "projector_output_dim": 48,
        "vision_output_dim": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.1,
    }
    return transformers.Llama4Config(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN
    )


def save_model(case: Case, folder: str) -> torch.nn.Module:
    """Writes and returns a random model; norms and biases random too, so that a mix-up shows."""
    torch.manual_seed(case.seed)
    kinds = transformers.Llama4ForCausalLM, transformers.Llama4ForConditionalGeneration
    model = kinds[case.vision]._from_config(hf_config(case), attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def load_hf(case: Case, folder: str, dtype: torch.dtype = torch.float32):
    # SDPA, because the eager path keeps softmax in bf16; the dtype at loading, because a later
    # .to(dtype) would drop the imaginary half of the vision tower's rotation.
    kinds = transformers.Llama4ForCausalLM, transformers.Llama4ForConditionalGeneration
    model = kinds[case.vision].from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def prompt(case: Case) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids with the patch tokens of all images at random places, and their tiles."""
    generator = torch.Generator().manual_seed(case.seed)
    ids = torch.randint(0, IMAGE_TOKEN, (case.batch, case.length), generator=generator)
    if not case.tiles:
        return ids, None
    places = torch.randperm(ids.numel(), generator=generator)[: case.tiles * TOKENS_PER_TILE]
    ids.view(-1)[places] = IMAGE_TOKEN
    tiles = torch.rand(case.tiles, CHANNELS, TILE, TILE, generator=generator) * 2 - 1
    return ids, tiles


def hf_logits(model, ids: torch.Tensor, tiles: torch.Tensor | None) -> torch.Tensor:
    images = {} if tiles is None else {"pixel_values": tiles}
    with torch.inference_mode():
        return model(ids, **images).logits.float()


def hf_generate(model, ids: torch.Tensor, tiles: torch.Tensor | None, n: int) -> torch.Tensor:
    images = {} if tiles is None else {"pixel_values": tiles}
    mask = torch.ones_like(ids)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0, **images
    )


def difference(case: Case, new_tokens: int = 8) -> float:
    """The largest difference of the logits; raises if greedy tokens differ."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = save_model(case, folder), l4kernels.Llama4.from_pretrained(folder)
    ids, tiles = prompt(case)
    worst = (ours.prompt_logits(ids, tiles) - hf_logits(theirs, ids, tiles)).abs().max().item()
    if new_tokens:
        wanted = hf_generate(theirs, ids, tiles, new_tokens)
        got = ours.generate(ids, new_tokens, pixel_values=tiles)
        if not torch.equal(wanted, got):
            shown = wanted[:, case.length :].tolist(), got[:, case.length :].tolist()
            raise AssertionError(f"{case}: greedy tokens differ: {shown}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first case")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tiny matrices: a second thread only costs
    worst, started = (0.0, None), time.monotonic()
    for seed in range(options.first, options.first + options.cases):
        case = random_case(seed)
        worst = max(worst, (difference(case), case), key=lambda pair: pair[0])
    seconds = time.monotonic() - started
    print(f"{options.cases} cases in {seconds:.0f} s, greedy tokens equal in all")
    print(f"largest difference {worst[0]:.2e} (allowed {TOLERANCE:.0e}) in {worst[1]}")
    raise SystemExit(worst[0] > TOLERANCE)


if __name__ == "__main__":
    main()
