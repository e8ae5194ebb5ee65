"""What a device can do for an image encoder: the number type of its features, and how many crops it holds at once."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from sigmma_sc.errors import EncoderError, MemoryWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sigmma_sc.encoders.encoder import ImageEncoder

TENSOR_CORES = (7, 0)
"""Compute capability from which a GPU is faster in float16: earlier ones are slower in it, or have no such arithmetic."""

MOST_CROPS = 256
"""Crops of a chunk beyond which a GPU gains nothing (our choice)."""

SHARE = 0.8
"""Share of the free memory that a chunk may fill: the rest is for what is computed on the way."""

BYTES_A_WEIGHT = 20
"""Of a trained weight in float32: its gradient, two moments of AdamW, and two gradients while chunks are added up."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself. torch also counts GPUs that emulate it, which is slower than float32."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def feature_type(device: torch.device, single: bool = False) -> torch.dtype:
    """Number type in which a frozen encoder computes: bfloat16 or float16 on a GPU that is faster in it, else float32.

    ``single`` takes float32 everywhere.
    """
    if single or device.type != "cuda":
        return torch.float32
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= TENSOR_CORES else torch.float32


def computing_in(kind: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Autocast to a number type; float32 takes no autocast."""
    return nullcontext() if kind == torch.float32 else torch.autocast(device.type, kind)


def fewer_crops(n: int, name: str) -> int:
    """Half of ``n`` crops, with a warning, after memory ran out; :class:`EncoderError` if it was a single one."""
    if n == 1:
        raise EncoderError(
            f"Image encoder {name!r} does not fit into the free memory of the device with a single crop. Use a smaller encoder, "
            "regime='lora' or 'frozen', smaller crop_sizes, or a device with more memory."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(
        f"Image encoder {name!r}: {n} crops at once need more memory than is free. {n // 2} are taken from now on. Give "
        f"chunk_size={n // 2} to train() to start there.",
        MemoryWarning,
        stacklevel=2,
    )
    return n // 2


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that torch holds without using them."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def crops_in_memory(encoder: ImageEncoder, size: int, free: int) -> int:
    """How many crops of a side in px fit into ``free`` bytes while the encoder is trained, a power of 2.

    What a crop's gradient needs is counted, under the autocast of the caller. Of powers of 2, the same one is chosen when
    a little more or less memory is free.
    """
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    room = SHARE * (free - BYTES_A_WEIGHT * trained)
    most = max(1, min(MOST_CROPS, int(room / max(1, bytes_of_crop(encoder, size)))))
    return 1 << (most.bit_length() - 1)


def bytes_of_crop(encoder: ImageEncoder, size: int) -> int:
    """Bytes that autograd keeps of the forward pass for each crop of a side in px; weights that it keeps do not count."""
    blank = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=encoder.device)
    with torch.enable_grad():
        return _kept(lambda: encoder.features(blank)) - _kept(lambda: encoder.features(blank[:1]))


def _kept(call: Callable[[], Tensor]) -> int:
    """Bytes of the distinct memory that autograd keeps of a call."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = call()
    del output  # kept until here, so that no memory was used twice
    return sum(kept.values())
