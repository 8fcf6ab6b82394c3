"""Tiny checkpoints in published quantised forms, written by the libraries of these forms.

Each comes with the model of transformers whose weights are what that library makes of its codes.
"""

import contextlib
import io
import json
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.quant_scheme import NVFP4
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from transformers.models.llama4.modeling_llama4 import Llama4TextMLP

from l4kernels import Llama4, ops
from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.inputs.fields import ConfigError
from l4kernels.model.config import Llama4Config
from tests.support.checkpoints import write_index
from tests.support.parity import Case, hf_config, hf_logits, prompt

FIELDS = (("intermediate_size", 256), ("intermediate_size_mlp", 512), ("vocab_size", 320))
CASE = Case(layers=2, hidden=256, heads=(2, 1), moe_step=2, experts=3, length=12, fields=FIELDS)
"""A dense layer and one of experts; sizes that all formats of weights take, in groups of 128 too.
"""
FUSED = ("gate_up_proj", "down_proj")
KINDS = transformers.Llama4ForCausalLM, transformers.Llama4ForConditionalGeneration

DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def int4(group=128, symmetric=True, bits=4, targets=("Linear",)) -> dict:
    """The library's `config_groups` for packed codes; group 0: a scale per channel."""
    kind = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **kind}
    return {"packed": {"targets": [*targets], "weights": weights}}


def fp8(strategy="channel", targets=("Linear",), inputs=DYNAMIC, **more) -> dict:
    """The library's `config_groups` for e4m3 codes."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, **more}
    return {"fp8": {"targets": [*targets], "weights": weights, "input_activations": inputs}}


def nvfp4() -> dict:
    """The library's `config_groups` for weights in NVFP4."""
    weights = {**NVFP4["weights"].model_dump(mode="json"), "observer": None}
    return {"nvfp4": {"targets": ["Linear"], "weights": weights}}


@dataclass
class Written:
    """A checkpoint folder.

    Attributes:
        folder: where it lies.
        tensors: what it holds, by name.
        model: transformers' model of the library's dequantised weights, in float32.
        schemes: the library's scheme of each quantised module.
        case: of `parity`.
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    model: torch.nn.Module
    schemes: dict = field(default_factory=dict)
    case: Case = CASE

    def difference(self, **load) -> float:
        """Of the logits, to those of our model."""
        ids, tiles = prompt(self.case)
        ours = quietly(self.folder, **load).prompt_logits(ids, tiles)
        return (ours - hf_logits(self.model, ids, tiles)).abs().max().item()

    def source(self):
        """The opened checkpoint."""
        return open_checkpoint(self.folder, Llama4Config.from_pretrained(self.folder))


def quietly(folder, **load) -> Llama4:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Llama4.from_pretrained(folder, **load)


def said(folder, **load) -> list[str]:
    """What loading it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Llama4.from_pretrained(folder, **load)
    return [
        text.removeprefix(f"{folder}: ")
        for entry in caught
        if (text := str(entry.message)).startswith(str(folder))
    ]


def refused(folder: Path, message: str, **load) -> None:
    """In one line that names the folder, soon."""
    start = time.monotonic()
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        quietly(folder, **load)
    text = str(caught.value)
    assert time.monotonic() - start < 2 and "\n" not in text and str(folder) in text


def spoilt(value):
    """Makes a copy of a tensor with another value in its second place."""

    def change(data):
        data = data.clone()
        data.view(-1)[1] = value
        return data

    return change


def random_model(case: Case) -> torch.nn.Module:
    """As `parity.save_model` makes it, and not saved."""
    torch.manual_seed(case.seed)
    model = KINDS[case.vision]._from_config(hf_config(case), attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def split_experts(model: torch.nn.Module) -> None:
    """Gives every expert linear layers of its own, as llm-compressor does before it quantises."""
    text = getattr(model.config, "text_config", model.config)
    for module in model.modules():
        experts = getattr(module, "experts", None)
        if experts is None:
            continue
        parts = [Llama4TextMLP(text) for _ in range(text.num_local_experts)]
        for part, both, down in zip(parts, experts.gate_up_proj, experts.down_proj, strict=True):
            gate, up = both.data.t().chunk(2)
            part.gate_proj.weight.data = gate.contiguous()
            part.up_proj.weight.data = up.contiguous()
            part.down_proj.weight.data = down.data.t().contiguous()
        module.experts = torch.nn.ModuleList(parts)


def fused(tensors: dict) -> dict:
    """The opposite, of a state dict."""
    result, parts = {}, {}
    for name, data in tensors.items():
        head, found, tail = name.partition(".experts.")
        if found and tail.count("."):
            expert, kind, _ = tail.split(".")
            parts.setdefault(head, {})[int(expert), kind] = data.t()
        else:
            result[name] = data
    for head, own in parts.items():
        experts = range(len(own) // 3)
        both = [torch.cat([own[e, "gate_proj"], own[e, "up_proj"]], 1) for e in experts]
        result[f"{head}.experts.gate_up_proj"] = torch.stack(both)
        result[f"{head}.experts.down_proj"] = torch.stack([own[e, "down_proj"] for e in experts])
    return result


def observe(module: torch.nn.Module) -> None:
    """The scales and zero points of the library's rule for the weights as they are."""
    args, w = module.quantization_scheme.weights, module.weight.data.float()
    n, k = w.shape
    low = high = w
    if args.strategy == "tensor":
        low, high = w.amin(), w.amax()
    elif args.strategy == "channel":
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    elif "group" in args.strategy:
        groups = w.unflatten(1, (-1, args.group_size))
        low, high = groups.amin(-1), groups.amax(-1)
    else:
        rows, columns = args.block_structure
        padded = torch.nn.functional.pad(w, (0, -k % columns, 0, -n % rows))
        blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    whole = None
    if args.strategy == "tensor_group":
        whole = module.weight_global_scale.data = generate_gparam(low.amin(), high.amax())[None]
    scale, zero = calculate_qparams(low, high, args, whole)
    module.weight_scale.data = scale.to(module.weight_scale.dtype)
    module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)


def write_compressed(
    folder: Path,
    groups: dict,
    ignore: tuple[str, ...] = ("re:.*lm_head", "re:.*router"),
    *,
    case: Case = CASE,
    scales: torch.dtype | None = torch.bfloat16,
    shards: int = 1,
    prefix: str = "",
    cache: dict | None = None,
    split: bool = True,
) -> Written:
    """A checkpoint that the compressed-tensors library quantised and compressed.

    Args:
        groups: the library's `config_groups`.
        ignore: modules that stay as they are.
        scales: the dtype of scales; None: the library's.
        prefix: put before every name.
        cache: the library's `kv_cache_scheme`.
        split: every expert has tensors of its own; otherwise the library leaves experts as they
            are, one tensor for all.
    """
    model = random_model(case)
    if split:
        split_experts(model)
    config = QuantizationConfig(config_groups=groups, ignore=[*ignore], kv_cache_scheme=cache)
    with contextlib.redirect_stderr(io.StringIO()):  # the library's progress
        apply_quantization_config(model, config)
        quantised = {}
        for name, module in model.named_modules():
            if name.endswith("self_attn") and hasattr(module, "k_scale"):
                module.k_scale.data.fill_(0.25 + len(quantised))
                module.v_scale.data.fill_(0.5 + len(quantised))
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            for part in ("weight_scale", "input_scale"):
                if hasattr(module, part) and scales is not None:
                    getattr(module, part).data = torch.ones_like(getattr(module, part)).to(scales)
            observe(module)
            quantised[name] = scheme
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
    tensors = {name: data.contiguous() for name, data in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    compressor.update_config(str(folder))
    plain = random_model(case)
    plain.load_state_dict(fused(decompressed(tensors, quantised)), strict=True)
    stored = {prefix + name: data for name, data in tensors.items()}
    save(folder, stored, shards)
    return Written(folder, stored, plain, {prefix + n: s for n, s in quantised.items()}, case)


def decompressed(tensors: dict, quantised: dict) -> dict:
    """A state dict as the library decompresses it, with scales in float32: in their own dtype it
    would round what they are multiplied by."""
    plain = {}
    for name, data in tensors.items():
        module, _, part = name.rpartition(".")
        if module not in quantised:
            if not name.endswith(("k_scale", "v_scale")):
                plain[name] = data
        elif part in ("weight", "weight_packed"):
            own = parts_of(tensors, module)
            scheme = quantised[module]
            if scheme.weights.strategy == "tensor_group":
                plain[f"{module}.weight"] = decompressed_nvfp4(own, scheme)
                continue
            own["weight_scale"] = own["weight_scale"].float()
            library = BaseCompressor.get_value_from_registry(scheme.format)
            plain[f"{module}.weight"] = library.decompress(own, scheme)["weight"]
        elif part == "bias":
            plain[name] = data
    return plain


def decompressed_nvfp4(own: dict, scheme) -> torch.Tensor:
    """By the functions of the library's compressor, which asks them for bfloat16."""
    packed = own["weight_packed"]
    codes = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], dtype=torch.float32)
    return dequantize(
        codes,
        own["weight_scale"].float(),
        args=scheme.weights,
        global_scale=own["weight_global_scale"],
        dtype=torch.float32,
    )


def parts_of(tensors: dict, module: str) -> dict:
    """What a checkpoint holds of one module."""
    return {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{module}.")}


def held(model: Llama4, slot: Slot) -> dict[str, torch.Tensor]:
    """The rows that a slot fills in each parameter of its linear layer; of int4 tiles what is in
    them: packed, scales, zeros."""
    linear = model.get_submodule(slot.target)
    rows = dict(linear.named_parameters())
    if "tiles" in rows:
        rows = ops.untile_int4(rows["tiles"])._asdict()
    rows = {
        n: t if slot.expert is None else t[slot.expert] for n, t in rows.items() if t is not None
    }
    if isinstance(slot.rows, slice):
        return {n: t[slot.rows] for n, t in rows.items()}
    if slot.rows in ("gate", "up"):
        half = ("gate", "up").index(slot.rows)
        return {n: t.unflatten(0, (-1, 2, 8))[:, half].flatten(0, 1) for n, t in rows.items()}
    return {n: t[: slot.shape[0]] for n, t in rows.items()}


def formats(model: Llama4) -> list[str]:
    """Of the blocks: attention and feed-forward of each layer, lm_head."""
    blocks = [(b.attention.qkv_proj, b.feed_forward.gate_up_proj) for b in model.layers]
    return [linear.form.name for pair in blocks for linear in pair] + [model.lm_head.form.name]


def save(folder: Path, tensors: dict, shards: int = 1) -> None:
    """Replaces the files of tensors; with several, neighbours lie in different ones."""
    for file in folder.glob("model*"):
        file.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    write_index(folder, weight_map)


def load(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def change_config(folder: Path, change) -> None:
    """`change` edits the object in config.json."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
