"""Checks that training makes the calls whose results evaluation rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

from compressbench.core.activation_quantizers import attach_
from compressbench.core.activation_sites import find_sites, site_name
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import DataSpec

PASSES = 64  # in training mode: a block that is skipped in half of them is missed once in 2**64


def check_training_calls(model: nn.Module, spec: DataSpec) -> None:
    """Raise UserError, naming the module, unless training reaches every activation site.

    A block may be skipped at random, and training may make more calls than evaluation. Refused is
    a model whose training takes another path at a site, or repeats a call another number of times.
    """
    probe = deepcopy(model).eval()
    sites = find_sites(probe, spec.blank(2))
    quantizers = attach_(probe, {"sites": sites, "bits": 8})
    reached: set[int] = set()
    quantizers.observe = lambda number, values: reached.add(number)
    generator = torch.Generator().manual_seed(0)
    probe.train()
    with torch.no_grad(), _seeded():
        for _ in range(PASSES):
            try:
                probe(spec.noise(2, generator))
            except CheckFailedError as error:
                raise UserError(f"activations cannot be trained: {error}") from None
            if len(reached) == len(sites):
                return
    missed = next(site for number, site in enumerate(sites) if number not in reached)
    where = f"layer {missed['layer']}" if missed["layer"] else "the model"
    raise UserError(
        f"activations cannot be trained: {where} computes {site_name(missed)} in evaluation but "
        "not in training; let both take the same path, or set activation=null"
    )


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed what models draw from, and restore it."""
    state = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(state)
