"""What PyTorch would do on CUDA, followed on tensors of the meta device, without a GPU or a build.

Inside `on_cuda` a tensor of the meta device says that it lies on CUDA. Calls of PyTorch's functions
are changed as CUDA's dispatcher would change them: autocast casts by CUDA's lists, which differ
from a CPU's, attention takes one of CUDA's three paths, and an RMS norm is one kernel where CUDA
has one. Everything below, such as autograd and the parts of composite functions, is PyTorch's own.

Fake tensors of CUDA would have PyTorch's own autocast, but a build without CUDA refuses to record
their gradients. `tests/test_cuda_counts.py` compares both where both work, in forward passes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 99)  # what is kept for this device is never mistaken for a real one's
HALVES = (torch.float16, torch.bfloat16)
HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
FLASH_WIDTH = 256  # channels of a head, at most
SAME_LISTS = {  # what calls one function of the lists, in Python or as a composite
    "rpow": "pow",
    "rmatmul": "matmul",
    "square": "pow",
    "norm": "linalg_vector_norm",
}
HIDING = {  # what calls several of them, which is not seen here
    "normalize",
    "cross_entropy",
    "binary_cross_entropy",
    "gaussian_nll_loss",
    "multi_head_attention_forward",
    "instance_norm",
}


def autocast_lists(header: str) -> dict[str, str]:
    """Read CUDA's autocast lists, the name of a list by that of a function.

    Args:
        header: of PyTorch, which every build has: CUDA's lists stand there as macros.
    """
    blocks = re.findall(r"#define AT_FORALL_(\w+)\(_\)((?:.*\\\n)+.*)", header)
    lists = {name: re.findall(r"_\(\s*(\w+)", block) for name, block in blocks}
    kinds = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")
    return {function: kind for kind in kinds for function in lists[kind]}


LISTS = autocast_lists(HEADER.read_text())


@contextmanager
def on_cuda() -> Iterator["CudaRules"]:
    """Let tensors of the meta device behave as CUDA's; yields what attention was computed by.

    `torch.autocast("cuda", ...)` works inside, also in a build without CUDA.
    """
    rules = CudaRules()
    with ExitStack() as stack:
        for module, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda: True),
            (torch, "clear_autocast_cache", rules.casts.clear),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        # It compares devices, which inside of PyTorch's functions are still called meta.
        checks = checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(mock.patch.dict(checks, default=lambda tensor: tensor.dtype))
        stack.enter_context(rules)
        yield rules


class CudaRules(TorchFunctionMode):
    """Changes the calls of functions; see `on_cuda`.

    Attributes:
        attention: the path that each call of attention took, and why not a better one.
        casts: weights that autocast has cast, until the outermost context of autocast ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention: list[tuple[str, str]] = []
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function as on CUDA."""
        if func in _DEVICE:
            return _DEVICE[func](*args)
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(map(_to_meta, args))
        kwargs = {name: _to_meta(value) for name, value in (kwargs or {}).items()}
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self._autocast(_name(func), args, kwargs)
        if func is Tensor.backward:
            with self:  # what is computed again on the way back follows the rules too
                return _backward(args[0])
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _autocast(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast a call's tensors by the list that has the function; most are in none."""
        if name in HIDING:
            raise NotImplementedError(
                f"{name} under autocast: it calls functions of autocast's lists by itself; add "
                "the casts that they make to tests/support/cuda_rules.py"
            )
        if name == "interpolate" and (kwargs.get("mode") or [*args, 0, 0, 0][3]) != "area":
            name = "upsample_nearest2d"  # in the list are all modes but this
        kind = LISTS.get(name)
        if kind == "FP32_SET_OPT_DTYPE":
            is_free = _is_castable(args[0]) and kwargs.get("dtype") is None
            return args, kwargs | ({"dtype": torch.float32} if is_free else {})
        if kind is None:
            return args, kwargs
        wanted = self._wanted(kind, (*args, *kwargs.values()))
        cast = {name: self._cast(value, wanted) for name, value in kwargs.items()}
        return tuple(self._cast(value, wanted) for value in args), cast

    def _wanted(self, kind: str, values: Any) -> torch.dtype:
        """Return the type to cast to; where types are promoted it is the widest that is there."""
        is_wide = any(_is_castable(x) and x.dtype == torch.float32 for x in tree_leaves(values))
        if kind == "FP32" or (kind == "PROMOTE" and is_wide):
            return torch.float32
        return torch.get_autocast_dtype("cuda")

    def _cast(self, value: Any, wanted: torch.dtype) -> Any:
        """Cast one argument; that of a trained weight is made once, as PyTorch does."""
        if isinstance(value, (list, tuple)):
            return type(value)(self._cast(each, wanted) for each in value)
        if not _is_castable(value) or value.dtype == wanted:
            return value
        is_kept = (
            wanted in HALVES
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not is_kept:
            return value.to(wanted)
        if id(value) not in self.casts:
            self.casts[id(value)] = value, value.to(wanted)
        return self.casts[id(value)][1]

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        path, reason = attention_path(q, k, v, attn_mask)
        self.attention.append((path, reason))
        aten, start = torch.ops.aten, (q, k, v)
        if path == "flash":
            return aten._scaled_dot_product_flash_attention(
                *start, dropout_p, is_causal, scale=scale
            )[0]
        mask = additive(attn_mask, q.dtype)
        if path == "math":
            return aten._scaled_dot_product_attention_math(
                *start, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]
        is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in start)
        return aten._scaled_dot_product_efficient_attention(
            *start, padded(mask, q, k), is_trained, dropout_p, is_causal, scale=scale
        )[0]


def _backward(loss: Tensor) -> None:
    """Compute the gradients of a scalar; PyTorch's own entries would leave the rules first."""
    start = torch.ones_like(loss)
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def attention_path(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[str, str]:
    """Choose the kernels of attention as PyTorch does on a GPU of compute capability 8 or 9.

    Where cuDNN's attention comes first it takes what flash would, and counts as "flash" here.

    Returns:
        "flash", "efficient" or "math", and why not the one before, or both before.
    """
    width, wide, several = q.shape[-1], v.shape[-1], 16 // q.dtype.itemsize
    both = (
        (q.ndim != 4, f"q has {q.ndim} axes, not four"),
        (not q.dtype == k.dtype == v.dtype, f"q {q.dtype}, k {k.dtype}, v {v.dtype} differ"),
        (q.dtype == torch.float64, "no kernel for float64"),
        (any(x.stride(-1) != 1 for x in (q, k, v)), "a head's channels do not lie side by side"),
    )
    flash = (
        (mask is not None, "flash takes no mask"),
        (q.dtype not in HALVES, f"flash takes no {q.dtype}"),
        (max(width, wide) > FLASH_WIDTH, f"flash takes heads up to {FLASH_WIDTH}, not {width}"),
        (width != wide, f"flash takes heads of one width, not {width} and {wide}"),
    )
    efficient = (
        (width % several or wide % several, f"efficient takes multiples of {several}, not {width}"),
        (mask is not None and mask.stride(-1) != 1, "efficient needs a mask's keys side by side"),
    )
    ever, first, second = (
        "; ".join(reason for holds, reason in rules if holds) for rules in (both, flash, efficient)
    )
    if ever or (first and second):
        return "math", "; ".join(filter(None, (ever, first, second)))
    return ("efficient", first) if first else ("flash", "")


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a mask of truth values into what is added to the scores, as PyTorch does first."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    hidden = torch.scalar_tensor(-torch.inf, dtype=dtype, device="meta")
    return torch.where(mask, 0.0, hidden)


def padded(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Give a mask the shape of the scores, and rows that begin at multiples of 8, by a copy."""
    if mask is None:
        return None
    keys = k.shape[-2]
    if any(stride % 8 for stride in mask.stride()[:-1]):
        mask = F.pad(mask, (0, 8 - keys % 8))[..., :keys]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], keys)


@torch.library.custom_op("roofline::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, axes: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("counted only")


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, axes: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[: x.ndim - axes], dtype=torch.float32)


@torch.library.custom_op("roofline::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: Tensor, x: Tensor, root: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("counted only")


@_rms_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, root: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if weight is None else torch.empty_like(weight)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, output[1], weight)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    x, root, weight = ctx.saved_tensors
    to_x, to_weight = _rms_norm_backward(grad, x, root, weight)
    return to_x, None if weight is None else to_weight, None


_rms_norm.register_autograd(_gradients, setup_context=_keep)


def rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Run the one kernel that CUDA has, or the composite where PyTorch does not take it."""
    is_composite = x.is_complex() or (weight is not None and weight.dtype != x.dtype)
    if is_composite or torch._prims_common.suggest_memory_format(x) != torch.contiguous_format:
        return torch.rms_norm(x, normalized_shape, weight, eps)
    return _rms_norm(x, weight, len(normalized_shape))[0]


def _name(func: Callable[..., Any]) -> str:
    """Return the name that a function has in autocast's lists; operators have underscores."""
    name: str = getattr(func, "__name__", "")
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
    return SAME_LISTS.get(name, name)


def _is_castable(value: Any) -> bool:
    return isinstance(value, Tensor) and _is_cuda(value) and value.dtype in (*HALVES, torch.float32)


def _is_cuda(tensor: Tensor) -> bool:
    return tensor.is_meta


def _device(tensor: Tensor) -> torch.device:
    return CUDA if _is_cuda(tensor) else tensor.device


_DEVICE: Mapping[Any, Callable[..., Any]] = {
    Tensor.device.__get__: _device,
    Tensor.is_cuda.__get__: _is_cuda,
    Tensor.is_meta.__get__: lambda tensor: False,
    Tensor.get_device: lambda tensor: _device(tensor).index or 0,
}


def _to_meta(value: Any) -> Any:
    """Return an argument of a function, the meta device in place of CUDA."""
    is_cuda = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
    return "meta" if is_cuda else value
