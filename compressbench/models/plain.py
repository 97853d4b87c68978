"""Takes wrappers off a model, and brings deprecated forms of its layers to the current one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from compressbench.core.errors import UserError

_COMPILED = "_orig_mod"  # torch.compile keeps the module there


def plain(model: nn.Module) -> nn.Module:
    """The module inside torch.compile or data parallelism, changed in place where it has hooks.

    The deprecated hooks `torch.nn.utils.weight_norm` and `spectral_norm` become the
    parametrizations of the same name, with the same tensors: modules with hooks cannot be copied.
    Raises UserError for a scripted module, and for a mask of `torch.nn.utils.prune`.
    """
    model = unwrapped(model)
    _unwrap_children_(model)
    for name, module in model.named_modules():
        _refuse(name, module)
        module._compiled_call_impl = None  # of module.compile(), which keeps the module's class
        _uncompile_attributes_(module)
        _convert_hooks_(module)
    return model


def unwrapped(module: nn.Module) -> nn.Module:
    """Without torch.compile's wrapper and that of data parallelism: both share the weights."""
    inner = getattr(module, _COMPILED, None)
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def _unwrap_children_(module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # refused; its children cannot be listed so
        return
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = unwrapped(child)
            _unwrap_children_(unwrapped(child))


def _uncompile_attributes_(module: nn.Module) -> None:
    """Keep the methods that were compiled into attributes as they were: a copy of a module would go
    on to call the compiled method of the original.
    """
    for name, value in list(vars(module).items()):
        original = getattr(value, "_torchdynamo_orig_callable", None)
        if original is not None:
            vars(module)[name] = original


def release_hooked_(model: nn.Module) -> None:
    """Detach the weights that deprecated hooks computed, so that the model can be copied; the
    hooks compute them again at the next call.
    """
    for module in model.modules():
        for hook in _hooks(module):
            weight = vars(module).get(hook.name)
            if isinstance(weight, torch.Tensor):
                vars(module)[hook.name] = weight.detach()


def _refuse(name: str, module: nn.Module) -> None:
    where = f"its layer {name}" if name else type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(f"{where} is a TorchScript module: give the module it was made of")
    masks = [h for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
    if masks:
        raise UserError(
            f"{where} has a mask of torch.nn.utils.prune: call torch.nn.utils.prune.remove(layer, "
            "name) first"
        )


def _hooks(module: nn.Module) -> Iterator[WeightNorm | SpectralNorm]:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            yield hook


def _convert_hooks_(module: nn.Module) -> None:
    for hook in _hooks(module):
        with warnings.catch_warnings(action="ignore"):  # of the deprecation
            if isinstance(hook, WeightNorm):
                _convert_weight_norm_(module, hook)
            else:
                _convert_spectral_norm_(module, hook)


def _convert_weight_norm_(module: nn.Module, hook: WeightNorm) -> None:
    name = hook.name
    originals = [module.get_parameter(f"{name}_{part}") for part in "gv"]
    remove_weight_norm(module, name)
    if isinstance(module, nn.RNNBase):  # does not see its parametrizations: plain from the start
        return
    weight_norm(module, name, hook.dim)
    parts = module.get_submodule(f"parametrizations.{name}")
    parts.original0, parts.original1 = originals


def _drop_load_hooks_(module: nn.Module) -> None:
    """Remove the hooks that look for the tensors of `spectral_norm` on loading; torch's own
    removal does not find them.
    """
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]


def _convert_spectral_norm_(module: nn.Module, hook: SpectralNorm) -> None:
    name = hook.name
    original = module.get_parameter(f"{name}_orig")
    vectors = {part: module.get_buffer(f"{name}{part}") for part in ("_u", "_v")}
    remove_spectral_norm(module, name)
    _drop_load_hooks_(module)
    spectral_norm(module, name, hook.n_power_iterations, hook.eps, hook.dim)
    parts = module.get_submodule(f"parametrizations.{name}")
    parts.original = original
    for part, vector in vectors.items():
        parts.get_submodule("0").get_buffer(part).copy_(vector)
