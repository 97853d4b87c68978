"""Reads findings of `compressbench doctor`."""

from __future__ import annotations


def only(findings, subject):
    (one,) = (f for f in findings if f.subject == subject)
    return one
