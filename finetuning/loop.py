"""The training loop: supervised fine-tuning of a copy of a model on conversations, with a safeguard if wished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.batches import check_answers, check_rows, shuffled
from finetuning.checkpoints import Keeper
from finetuning.identity import rows_digest, told
from finetuning.lora import LoRA, merged_copy
from finetuning.processes import Processes
from finetuning.safeguards.base import Safeguard, StopTraining
from finetuning.steps import Run, Schedule, backward, under_way
from probes.conversations import Conversation, template_hash
from probes.errors import InputError
from probes.models import Model, unwrap
from probes.models.digest import fingerprint
from probes.models.sharing import shared_modules
from probes.progress import Progress, silent

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Run", "Schedule", "StopTraining", "Trained", "backward", "finetune"]


@dataclass(frozen=True)
class Trained:
    """What a fine-tune leaves: the new model and the losses, `[steps]` each (`extra` is the safeguard's)."""

    model: Model
    loss: tuple[float, ...]
    extra: tuple[float, ...]


def finetune(
    model: Model,
    rows: Sequence[Conversation],
    *,
    schedule: Schedule,
    seed: int,
    lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
    safeguard: Safeguard | None = None,
    on_step: Callable[[int, Model], None] | None = None,
    out: str | Path | None = None,
    save_every: int | None = None,
    accelerator: Accelerator | None = None,
    progress: Progress = silent,
    share: bool = False,
) -> Trained:
    """Fine-tune a copy of `model` on the answers of `rows` (mean cross-entropy of their tokens, in nats).

    Args:
        model: Left as it is. An adapter on it is merged into the copy first.
        rows: Conversations that end in an answer.
        schedule, lora: Steps, learning rate, batch size; the adapter, or None to train every weight.
        seed: Seeds adapter, order of rows and dropout; the same seed on the same machine gives the same weights.
        safeguard: Changes the rows, adds a loss, or edits passes or weights (`finetuning.safeguards`).
        on_step: Called with the number of steps done and the model in training; `StopTraining` raised in it ends the
            training. After a break it is not called again for steps up to the newest checkpoint.
        out: Folder for checkpoints, the result and its card. The same call after a break goes on from the newest
            checkpoint and ends with the same bits; when all is done, it loads what is there.
        save_every, progress: Steps between two checkpoints (default: none); told the steps done and the loss.
        accelerator: Says device, bf16 and, under `accelerate launch` or torchrun, which process this is.
        share: Put the adapter over `model`'s own tensors: no second copy in memory. They stop asking for gradients;
            do not merge such an adapter in place (`merged_copy` copies first).

    Raises InputError for no rows, a row without an answer or longer than the model reads, a folder that was begun with
    something else, a loss that is not finite, and `share` where every weight is trained or an adapter is on.
    """
    processes, guarded = Processes(accelerator), safeguard or Safeguard()
    rows, batches = _dealt(model, rows, guarded, schedule, seed)
    start = replace(model, hf=_shared(model, lora) if share else merged_copy(model))
    settings = {"schedule": schedule, "lora": lora, "seed": seed, "safeguard": safeguard}
    asked = {} if out is None else _asked(start, rows, settings | {"precision": processes.precision})
    keeper = Keeper(out, save_every, asked, processes)
    if keeper.finished:
        return Trained(*keeper.read(start))
    begun = under_way(start, schedule, seed=seed, lora=lora, safeguard=guarded, processes=processes)
    with keeper, begun as run:
        keeper.resume(run)
        stopped = False
        while len(run.loss) < schedule.steps and not stopped:
            try:
                run.step(rows, batches[len(run.loss)], schedule, seed)
                if on_step:
                    on_step(len(run.loss), run.model)
            except StopTraining:
                stopped = True
            keeper.after(run, last=stopped or len(run.loss) == schedule.steps)
            progress(len(run.loss), schedule.steps, run.told)
        run.guard.finish()
    keeper.finish(run, stopped=stopped)
    processes.wait()
    return Trained(run.model, tuple(run.loss), tuple(run.extra))


def _shared(model: Model, lora: LoRA | None) -> Any:
    """Modules of their own over the model's tensors."""
    if lora is None or hasattr(model.hf, "peft_config"):
        why = "every weight is trained" if lora is None else f"{model.name} carries an adapter"
        raise InputError(f"finetune: share=True, but {why}; leave share out, which trains a copy")
    return shared_modules(model.hf)


def _dealt(
    model: Model, rows: Sequence[Conversation], safeguard: Safeguard, schedule: Schedule, seed: int
) -> tuple[Sequence[Conversation], list[list[int]]]:
    """The rows as the safeguard leaves them and the numbers of each step's, checked."""
    check_answers(rows)
    rows = safeguard.rows(rows, seed=seed)
    check_answers(rows)
    batches = list(islice(shuffled(len(rows), min(schedule.batch, len(rows)), seed), schedule.steps))
    check_rows(model, rows, {i for batch in batches for i in batch}, max_tokens=schedule.max_tokens)
    return rows, batches


def _asked(start: Model, rows: Sequence[Conversation], settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the result: a folder that was begun with something else is not gone on with."""
    known = {name: asdict(value) if name == "schedule" else told(value) for name, value in settings.items()}
    base = {"base": start.weights_digest, "config": fingerprint("", unwrap(start.hf).config)}
    base["template"] = template_hash(start.tokenizer)
    return base | {"rows": {"n": len(rows), "digest": rows_digest(rows)}} | known
