"""`persona-geometry capture`: activations of a file of conversations, into a store on disk that any run continues."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probes.store import ActivationStore


def capture(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    conversations: Annotated[Path, typer.Argument(help="JSONL, a {'messages': [...]} a line.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; one that was begun is continued.")],
    layers: Annotated[str, typer.Option(help="Blocks, 0-based: `8`, `3,7` or `10-20`.")],
    site: Annotated[
        str, typer.Option(help="Where in a block: resid_pre, resid_mid, resid_post, attn_out, mlp_out.")
    ] = "resid_post",
    pool: Annotated[
        str, typer.Option(help="tokens (each), or one vector a row: response_mean, prompt_mean, last_prompt.")
    ] = "tokens",
    dtype: Annotated[str, typer.Option(help="On disk: float32, bfloat16, float16.")] = "bfloat16",
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter over MODEL.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens read for one shard: what memory must hold.")] = 2**16,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass, padding counted.")] = 2**13,
    batch_size: Annotated[int, typer.Option(help="Conversations of one forward pass, at most.")] = 64,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.")] = "cpu",
    ray: Annotated[
        str | None, typer.Option(help="Spread the work: `local`, or the address of a Ray cluster (`auto`).")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Models that run at once under --ray (default: one a GPU, or one a core).")
    ] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="First check every byte of the store, and capture damaged shards again.")
    ] = False,
) -> None:
    """Read a model's activations on conversations into a store; after a break the same command goes on."""
    from persona_geometry.commands.terminal import Bar, settle

    settle()
    from persona_geometry.commands.blocks import named_blocks
    from probes.capture import Reading

    wanted: Any = {"pool": pool, "site": site, "batch_size": batch_size, "batch_tokens": batch_tokens}
    reading = Reading(named_blocks(layers), **wanted)
    source = {"model": model, "adapter": adapter}
    store = _store(out, conversations, source, {"dtype": dtype, "shard_tokens": shard_tokens})
    if repair:
        for damage in store.drop_damaged():
            print(f"{damage.shard.file}: {damage.why}; is captured again")
    with Bar() as bar:
        if ray is None:
            _here(conversations, source, device, reading, store, bar)
        else:
            _spread(conversations, source, device, reading, store, bar, ray, workers)
    _say(store)


def _store(out: Path, conversations: Path, source: dict[str, str | None], settings: dict[str, Any]) -> ActivationStore:
    """A new store, or the one that is there, if it was begun with the same."""
    import hashlib

    from probes.errors import InputError
    from probes.store import ActivationStore
    from probes.store.shards import DTYPES
    from probes.store.writer import MANIFEST

    if not conversations.is_file():
        raise InputError(f"{conversations}: no such file; give a JSONL file with one {{'messages': [...]}} per line")
    with conversations.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settings["dtype"] not in DTYPES:
        raise InputError(f"--dtype {settings['dtype']}: use one of {', '.join(DTYPES)}")
    meta = source | {"conversations": str(conversations), "sha256": digest}
    if not (out / MANIFEST).exists():
        return ActivationStore.create(out, meta, dtype=DTYPES[settings["dtype"]], shard_tokens=settings["shard_tokens"])
    store = ActivationStore.open(out)
    for name, value in settings.items():
        if store.manifest[name] != value:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} {value}: {out} was begun with {store.manifest[name]}; give that or another --out"
            )
    begun = store.meta
    if begun.get("sha256") != digest:
        raise InputError(
            f"{conversations} (SHA-256 {digest[:12]}): {out} was begun with {begun.get('conversations')} (SHA-256 "
            f"{str(begun.get('sha256'))[:12]}); give that file or another --out"
        )
    return store


def _here(conversations: Path, source: dict[str, Any], device: str, reading: Any, store: ActivationStore, bar: Any):
    from probes.capture import capture
    from probes.models import load_model

    model = load_model(source["model"], adapter=source["adapter"], device=device)
    capture(model, conversations, **vars(reading), store=store, progress=bar)


def _spread(
    conversations: Path,
    source: dict[str, Any],
    device: str,
    reading: Any,
    store: ActivationStore,
    bar: Any,
    address: str,
    count: int,
) -> None:
    from functools import partial

    from probes.harvest import Workers, harvest
    from probes.models import load_model
    from probes.models.load import load_tokenizer

    folder = Path(source["model"]).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else source["model"]  # workers start in a folder of their own
    adapter = source["adapter"] and str(Path(source["adapter"]).expanduser().resolve())
    load = partial(load_model, name, adapter=adapter, device=device)
    spread = Workers(count, gpus=int(device.startswith("cuda")), address=address)
    settings: Any = {"reading": reading, "store": store, "workers": spread, "progress": bar}
    harvest(load, conversations, tokenizer=load_tokenizer(name), **settings)


def _say(store: ActivationStore) -> None:
    shards, kind = store.shards, store.kind
    size = sum(shard.bytes for shard in shards) / 1e6
    rows, held = sum(shard.rows for shard in shards), sum(len(shard.indices()) for shard in shards)
    print(
        f"{store.path}: {rows:,} samples of {held:,} conversations, blocks {', '.join(map(str, kind['layers']))} at "
        f"{kind['site']}, {kind['pool']}, {len(shards)} shards, {size:,.1f} MB"
    )
