"""Published formats of weights, one file each, chosen by what config and headers say."""

import re
from pathlib import Path

from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, short, some
from l4kernels.checkpoint.formats.awq import Awq
from l4kernels.checkpoint.formats.compressed_tensors import CompressedTensors
from l4kernels.checkpoint.formats.fbgemm_fp8 import FbgemmFp8
from l4kernels.checkpoint.formats.gptq import Gptq
from l4kernels.checkpoint.formats.modelopt import ModelOpt
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.inputs.files import shown
from l4kernels.model.config import Llama4Config

READERS: tuple[type[Unquantised], ...] = (
    Unquantised,
    CompressedTensors,
    FbgemmFp8,
    ModelOpt,
    Awq,
    Gptq,
)
"""Every published format that is read."""

_PARTS = re.compile(
    r"\.(weight_(packed|scale|scale_inv|scale_2|global_scale|zero_point)|qweight|qzeros|scales)$"
    r"|_proj_scale$|\.weight\.(absmax|quant_state\.\w+)$"
)
"""What formats of codes call tensors that no checkpoint of floats has."""


def open_checkpoint(path: str | Path, config: Llama4Config) -> Unquantised:
    """The checkpoint in a folder, in whatever format, refused if it does not fit the config.

    Reads no tensor data, so it comes before any memory is taken.
    """
    checkpoint = Checkpoint(path)
    quantization = Quantization.of_folder(checkpoint.folder)
    if quantization is None:
        _require_floats(checkpoint)
        return Unquantised(config, checkpoint)
    for reader in READERS:
        if quantization.method in reader.methods:
            return reader(config, checkpoint, quantization)
    known = "; ".join(reader.supports for reader in READERS)
    raise CheckpointError(
        f"{quantization.file}: weights quantised by {shown(quantization.method)} cannot be read; "
        f"supported: {known}; {ADVICE}"
    )


def _require_floats(checkpoint: Checkpoint) -> None:
    """Refuses codes without a record: their names alone would be "missing" and "unexpected"."""
    parts = [name for name in checkpoint.entries if _PARTS.search(name)]
    if parts:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: has no quantization_config, but the files hold "
            f"{len(parts)} parts of quantised weights: {some(map(short, parts))}; download the "
            f"config that belongs to them"
        )
