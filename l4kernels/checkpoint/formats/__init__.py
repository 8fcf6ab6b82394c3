"""Published formats of weights, one file each, chosen by what config and headers say."""

from pathlib import Path

from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError
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


def open_checkpoint(path: str | Path, config: Llama4Config) -> Unquantised:
    """The checkpoint in a folder, in whatever format, refused if it does not fit the config.

    Reads no tensor data, so it comes before any memory is taken.
    """
    checkpoint = Checkpoint(path)
    quantization = Quantization.of_folder(checkpoint.folder)
    if quantization is None:
        return Unquantised(config, checkpoint)
    for reader in READERS:
        if quantization.method in reader.methods:
            return reader(config, checkpoint, quantization)
    known = "; ".join(reader.supports for reader in READERS)
    raise CheckpointError(
        f"{quantization.file}: weights quantised by {shown(quantization.method)} cannot be read; "
        f"supported: {known}; {ADVICE}"
    )
