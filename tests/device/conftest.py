"""A device that does not exist, for tests where there is no GPU.

Its tensors report the device ``meta`` and keep their values on the CPU. It refuses what CUDA refuses: operands on two
devices, a generator or an index of another device, ``numpy()``. It records what makes the host wait for a GPU, with the
line of the package that caused it.
"""

import contextlib
import sys
from collections import Counter

import pytest
import torch
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

PLACE = torch.device("meta")

WAITS = {
    "_linalg_check_errors", "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations after which the host needs a value, or the size of a result, of the device."""

MOVES = {"_to_copy", "copy_"}


class MixedDevicesError(RuntimeError):
    """Operands are on two devices."""


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; ``held`` are its values."""

    @staticmethod
    def __new__(cls, held):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PLACE,
        )
        out.held = held
        return out

    def __repr__(self):
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(None, func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is active, ``torch.device("meta")`` is the device.

    ``waits`` counts what a host would wait for, by kind and line. ``failing`` are names of operations that the device
    does not have.
    """

    place = PLACE
    Tensor = PretendTensor
    MixedDevicesError = MixedDevicesError

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.failing = set()

    def __enter__(self):
        lifts = torch._C._only_lift_cpu_tensors()
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        self.before = lifts, overwrites
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self.before[0])
        torch.__future__.set_overwrite_module_params_on_conversion(self.before[1])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(self, func, args, kwargs or {})

    def note(self, what):
        frame = sys._getframe(2)
        while frame is not None and "/sigmma_sc/" not in frame.f_code.co_filename:
            frame = frame.f_back
        where = "elsewhere"
        if frame is not None:
            where = f"{frame.f_code.co_filename.rpartition('/sigmma_sc/')[2]}:{frame.f_lineno}"
        self.waits[what, where] += 1

    def waits_in(self, *rooms):
        """Waits that lines of some rooms or files of the package caused."""
        return {key: n for key, n in self.waits.items() if key[1].startswith(rooms)}


def run(mode, func, args, kwargs):
    """Run an operation on the held values; refuse and record what a GPU would."""
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, PretendTensor)]
    to = kwargs.get("device")
    stays = to is None or torch.device(to) == PLACE
    if not there and (to is None or not stays):
        return func(*args, **kwargs)
    if mode is None:
        stack = _python_dispatch._get_current_dispatch_mode_stack()
        mode = next((one for one in reversed(stack) if isinstance(one, PretendDevice)), None)
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor)]
    examine(mode, func._schema.name.removeprefix("aten::"), args, kwargs, there, here, stays)
    inner, named = tree_unflatten([x.held if isinstance(x, PretendTensor) else x for x in flat], spec)
    if "device" in named:
        named["device"] = torch.device("cpu")
    out = func(*inner, **named)
    if not stays:
        return out.clone() if any(out is x.held for x in there) else out
    known = {id(x.held): x for x in there}

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, PretendTensor):
            return x
        return known[id(x)] if id(x) in known else PretendTensor(x)

    return tree_map(wrapped, out)


def examine(mode, name, args, kwargs, there, here, stays):
    if mode is not None:
        if name in mode.failing:
            raise NotImplementedError(f"aten::{name} is not implemented for this device.")
        if what := wait_of(name, args, kwargs, there, here, stays):
            mode.note(what)
    # CUDA takes a single number of the CPU beside its own tensors, but joins no such number to them.
    if here and there and name not in MOVES and (name == "cat" or any(x.dim() for x in here)):
        shapes = [tuple(x.shape) for x in here], [tuple(x.shape) for x in there]
        raise MixedDevicesError(f"{name} has operands here {shapes[0]} and there {shapes[1]}.")
    if isinstance(generator := kwargs.get("generator"), torch.Generator):
        raise MixedDevicesError(f"{name} draws from a generator of {generator.device}.")


def wait_of(name, args, kwargs, there, here, stays):
    """What the host would wait for, if for anything."""
    if name in MOVES:
        if bool(there) == stays and not here:
            return None
        where = "to the device" if stays and here else "to the host"
        return where if kwargs.get("non_blocking") else f"{where}, blocking"
    if name in WAITS and kwargs.get("output_size") is None:
        return name
    if name.startswith("index") and any(getattr(i, "dtype", None) == torch.bool for i in tree_flatten(args[1:2])[0]):
        return "boolean mask"
    return None


@pytest.fixture
def device(monkeypatch):
    """The pretend device, and the way of Lightning and scvi-tools to it."""
    from lightning.pytorch.accelerators import Accelerator
    from scvi.model import _utils
    from scvi.train import _trainrunner

    class Pretend(Accelerator):
        setup_device = teardown = lambda self, *_: None
        parse_devices = staticmethod(lambda devices: 1)
        get_parallel_devices = staticmethod(lambda devices: [PLACE])
        auto_device_count = staticmethod(lambda: 1)
        is_available = staticmethod(lambda: True)
        name = staticmethod(lambda: "pretend")

    autocast, tensor = torch.autocast, torch.tensor

    def autocast_there(kind, *args, **kwargs):
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, *args, **kwargs)

    def tensor_there(data, device=None, **kwargs):
        # A constant is copied from the host; torch.tensor would leave it on the meta device without values.
        out = tensor(data, **kwargs)
        return out if device is None else out.to(device)

    def parsed(*args, **kwargs):
        return Pretend(), 1, PLACE

    monkeypatch.setattr(torch, "autocast", autocast_there)
    monkeypatch.setattr(torch, "tensor", tensor_there)
    monkeypatch.setattr(_utils, "parse_device_args", parsed)
    monkeypatch.setattr(_trainrunner, "parse_device_args", parsed)
    with PretendDevice() as pretend:
        yield pretend
