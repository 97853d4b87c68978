"""`compressbench store`: lists, compares, verifies, removes and pins entries of the store."""

from __future__ import annotations

import argparse
from datetime import datetime

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.formatting import bytes_text, parse_bytes
from compressbench.store import pins
from compressbench.store.collect import collect
from compressbench.store.entries import Entry, Store
from compressbench.store.explain import difference

_PIPE_COLUMNS = 160  # width of the table if the output is not a terminal


def main(argv: list[str]) -> int:
    """Run one subcommand; return 0, or 2 for wrong usage. Raises UserError and CheckFailedError."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or an error
        return int(stop.code or 0)
    run = {
        "list": _list,
        "explain": _explain,
        "collect": _collect,
        "verify": _verify,
        "pin": _pin,
        "unpin": _unpin,
    }
    run[options.command](Store.default(), options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compressbench store",
        description="Manage the store of computed results (.compressbench or COMPRESSBENCH_STORE).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the entries, least recently used first")
    explain = commands.add_parser("explain", help="show how two entries differ")
    explain.add_argument("key", help="first digits of a key")
    explain.add_argument("other", help="first digits of another key")
    room = commands.add_parser("collect", help="remove the least recently used entries")
    room.add_argument("--max-size", type=_size, help="limit of all entries together, such as 5GB")
    room.add_argument(
        "--min-free", type=_size, default=0, help="space to be free on the disk, such as 1GB"
    )
    room.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    verify = commands.add_parser("verify", help="check digests; damaged entries are set aside")
    verify.add_argument("--deep", action="store_true", help="also measure the stored files again")
    pin = commands.add_parser("pin", help="protect an entry from collection")
    pin.add_argument("key", help="first digits of the key")
    pin.add_argument("--reason", default="pinned by hand", help="shown by `list`")
    unpin = commands.add_parser("unpin", help="stop protecting an entry")
    unpin.add_argument("key", help="first digits of the key")
    return parser


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {error}") from None


def _find(store: Store, prefix: str) -> Entry:
    """The only entry whose key starts with `prefix`. Raises UserError for none or several."""
    keys = [key for key in store.all_keys() if key.startswith(prefix.lower())]
    if len(keys) != 1:
        count = "no entry" if not keys else f"{len(keys)} entries"
        raise UserError(f"{count} of {store.root} with a key that starts with {prefix!r}")
    entry = store.peek(keys[0])
    if entry is None:
        raise UserError(f"entry {keys[0][:12]} is damaged: run compressbench store verify")
    return entry


def _list(store: Store, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "kind", "stage", "size", "seconds", "last use", "pinned", box=None)
    entries = [entry for key in store.all_keys() if (entry := store.peek(key))]
    for entry in sorted(entries, key=lambda e: e.last_use):
        table.add_row(
            entry.key[:12],
            str(entry.parts.get("kind", "")),
            str(entry.parts.get("stage", "")),
            bytes_text(entry.size_bytes),
            f"{entry.seconds:.1f}",
            f"{datetime.fromtimestamp(entry.last_use):%Y-%m-%d %H:%M}",
            ", ".join(pins.reasons(store.root, entry.key)),
        )
    total = bytes_text(sum(entry.size_bytes for entry in entries))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    if entries:
        console.print(table)
    console.print(f"{len(entries)} entries, {total}, in {store.root}", highlight=False)


def _explain(store: Store, options: argparse.Namespace) -> None:
    print(difference(_find(store, options.key), _find(store, options.other).parts))


def _collect(store: Store, options: argparse.Namespace) -> None:
    done = collect(store, options.max_size, options.min_free, options.dry_run)
    verb = "would remove" if options.dry_run else "removed"
    print(
        f"{verb} {len(done.removed)} entries, {bytes_text(done.freed_bytes)} in all; "
        f"{bytes_text(done.kept_bytes)} left"
        + (f"; {done.pinned} pinned or in use were skipped" * bool(done.pinned))
    )


def _verify(store: Store, options: argparse.Namespace) -> None:
    keys = list(store.all_keys())
    damaged = [key for key in keys if store.read(key) is None]
    if damaged:
        raise CheckFailedError(
            f"{len(damaged)} of {len(keys)} entries were damaged and set aside in "
            f"{store.root / 'quarantine'}: {', '.join(key[:12] for key in damaged)}"
        )
    print(f"{len(keys)} entries, all intact")
    if options.deep:
        _verify_figures(store)


def _verify_figures(store: Store) -> None:
    from compressbench.cli.verify_deep import verify_figures

    repeated, skipped, wrong = verify_figures(store)
    if wrong:
        raise CheckFailedError(
            f"{len(wrong)} figures are not those of their file; their measurements were set aside "
            f"in {store.root / 'quarantine'}: {'; '.join(wrong)}"
        )
    print(
        f"{repeated} measurements repeated, all figures the same"
        + f"; {skipped} not repeated: their file or data are not here" * bool(skipped)
    )


def _pin(store: Store, options: argparse.Namespace) -> None:
    entry = _find(store, options.key)
    store.pin(entry.key, options.reason)
    print(f"pinned {entry.key[:12]}")


def _unpin(store: Store, options: argparse.Namespace) -> None:
    entry = _find(store, options.key)
    store.unpin(entry.key)
    print(f"unpinned {entry.key[:12]}")
