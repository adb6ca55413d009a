"""Attribution: which latents make a model write what it writes, to first order, from one backward pass a batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.conversations import Conversation
from probes.errors import InputError
from probes.gradients import LossGradients, loss_gradients
from probes.models import Model
from probes.passes import Positions
from saes.attribute.setting import Form, Reference, Setting, setting_for
from saes.attribute.table import Attribution
from saes.pooling import HELD, Moments, blocks, segment_sums
from saes.rows import block_rows
from saes.sae import SparseAutoencoder
from saes.significance import half_width, paired_change, q_values


def attribute_latents(
    model: Model,
    sae: SparseAutoencoder,
    conversations: Sequence[Conversation],
    *,
    reference: Reference = "mean",
    form: Form = "latent",
    positions: Positions = "all",
    keep: Sequence[int] = (),
    batch_size: int = 8,
) -> Attribution:
    """How much each latent lowers the loss of the answers that `model` reads, to first order: one model, no control.

    With g_t the gradient of the answer's cross-entropy (nats per answer token) at the SAE's site and token t, z_t the
    latents, d_i the decoder's rows, and a bar for the mean over the tokens read (or 0, by `reference`):
    `form="direction"` is delta_i = - sum_t (g_t . d_i) ((a_t - abar) . d_i), d_i of length 1, as OpenAI publish it
    ("Debugging misaligned completions with SAE latent attribution", December 2025); `form="latent"` is
    delta_i = - sum_t (g_t . d_i) (z_it - zbar_i), which counts what the SAE says is there, and nothing else along d_i.

    Positive: taking the latent out would raise the loss, so it makes the answers likelier. `positions` are those of
    the operators, where it would be taken out. `keep` names latents whose values are kept for every token. The unit of
    interval and test is the conversation. InputError for an SAE that does not fit and conversations without answers.
    """
    setting = setting_for(model, sae, form, reference, positions)
    sae.check_latents(keep)
    usual = setting.usual(model, conversations, batch_size)
    moments, loss = Moments(), 0.0
    kept: list[pd.DataFrame] = []
    for part in _gradients(model, setting, conversations, batch_size):
        values = _by_conversation(setting, part, usual)
        moments.add(values, torch.ones(len(values)))
        loss += float((part.losses / part.counts).sum())
        if keep:
            kept.append(_by_token(setting, part, usual, keep))
    tokens = pd.concat(kept).sort_values(["conversation", "position"], ignore_index=True) if keep else None
    return Attribution(
        _table(moments), sae.name, sae.layer, form, reference, positions, moments.n, loss / moments.n, tokens=tokens
    )


def delta_attribution(
    model: Model,
    sae: SparseAutoencoder,
    undesired: Sequence[Conversation],
    desired: Sequence[Conversation],
    *,
    reference: Reference = "mean",
    form: Form = "latent",
    positions: Positions = "all",
    batch_size: int = 8,
) -> Attribution:
    """Attribution of undesired completions minus that of desired ones to the same prompts, under one model.

    Completions of one prompt are averaged first, then prompts count equally; interval and test are over prompts, of the
    paired differences. Both sides share one mean as their reference. Positive: the latent makes the undesired
    completions likelier than the desired ones (the signs, forms and source of `attribute_latents`). OpenAI steer the
    100 largest and have the answers graded: a candidate's effect is to be shown, not read off here. InputError for a
    prompt that has completions on one side only.
    """
    setting = setting_for(model, sae, form, reference, positions)
    prompts = paired(undesired, desired)
    usual = setting.usual(model, [*undesired, *desired], batch_size)
    sides, gap, loss = (Moments(), Moments()), Moments(), 0.0
    size = max(1, HELD // sae.d_sae)
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        means = []
        for side, moments in enumerate(sides):
            rows = [row for prompt in some for row in prompt[side]]
            values, losses = _together(model, setting, rows, usual, batch_size)
            lengths = torch.tensor([len(prompt[side]) for prompt in some])
            means.append(segment_sums(values, lengths) / lengths[:, None])
            moments.add(means[side], torch.ones(len(some)))
            each = segment_sums(losses[:, None], lengths)[:, 0] / lengths
            loss += float(each.sum()) * (1 - 2 * side)
        gap.add(means[0] - means[1], torch.ones(len(some)))
    table = _table(gap)
    table.insert(2, "undesired", sides[0].mean.numpy())
    table.insert(3, "desired", sides[1].mean.numpy())
    counts = (len(undesired), len(desired))
    return Attribution(table, sae.name, sae.layer, form, reference, positions, gap.n, loss / gap.n, completions=counts)


def _gradients(
    model: Model, setting: Setting, conversations: Sequence[Conversation], batch_size: int
) -> Iterator[LossGradients]:
    sae = setting.sae
    if not conversations:
        raise InputError("attribution: no conversations given; give at least one with an answer")
    return loss_gradients(
        model, conversations, layer=sae.layer, site=sae.site, positions=setting.positions, batch_size=batch_size
    )


def _together(
    model: Model, setting: Setting, rows: Sequence[Conversation], usual: Tensor, batch_size: int
) -> tuple[Float[Tensor, "sample d_sae"], Float[Tensor, " sample"]]:
    """Attribution and loss (nats per token) of each conversation, in their order."""
    values = torch.empty(len(rows), setting.sae.d_sae, dtype=torch.float64)
    losses = torch.empty(len(rows), dtype=torch.float64)
    for part in _gradients(model, setting, rows, batch_size):
        values[list(part.rows)] = _by_conversation(setting, part, usual)
        losses[list(part.rows)] = (part.losses / part.counts).double().cpu()
    return values, losses


def _by_conversation(setting: Setting, part: LossGradients, usual: Tensor) -> Float[Tensor, "batch d_sae"]:
    """Sums over the positions of each row, for the loss per answer token, in float64."""
    x, g, lengths = part.values[part.mask], part.grads[part.mask], part.mask.sum(-1).cpu()
    sums = torch.zeros(len(lengths), setting.sae.d_sae, dtype=torch.float64)
    for rows, runs, counts in blocks(lengths, block_rows(setting.sae.d_sae)):
        sums[runs] += segment_sums(_values(setting, x[rows], g[rows], usual), counts)
    return sums / part.counts.double().cpu()[:, None]


@torch.no_grad()
def _values(setting: Setting, x: Tensor, g: Tensor, usual: Tensor) -> Float[Tensor, "sample d_sae"]:
    """-(g . d_i) (level_i - usual_i) of every token."""
    rows = setting.rows()
    return -(g.to(rows) @ rows.T) * (setting.levels(x) - usual)


def _by_token(setting: Setting, part: LossGradients, usual: Tensor, keep: Sequence[int]) -> pd.DataFrame:
    """A row a token that counts: its conversation, position and id, and the attribution of each latent in `keep`."""
    x, g, mask = part.values[part.mask], part.grads[part.mask], part.mask.cpu()
    ids = torch.as_tensor(list(keep), device=usual.device)
    pieces = range(0, len(x), block_rows(setting.sae.d_sae))
    size = block_rows(setting.sae.d_sae)
    some = [_values(setting, x[i : i + size], g[i : i + size], usual)[:, ids].double().cpu() for i in pieces]
    numbers = torch.tensor(part.rows)[:, None].expand_as(mask)[mask]
    values = torch.cat(some) / part.counts.double().cpu()[mask.nonzero()[:, 0], None]
    rendered = {"position": part.rendered.position_ids, "token_id": part.rendered.input_ids}
    told = {"conversation": numbers} | {name: ids.cpu()[mask] for name, ids in rendered.items()}
    columns = {str(latent): values[:, i].numpy() for i, latent in enumerate(keep)}
    return pd.DataFrame({name: column.numpy() for name, column in told.items()} | columns)


def paired(
    undesired: Sequence[Conversation], desired: Sequence[Conversation]
) -> list[tuple[list[Conversation], list[Conversation]]]:
    """The completions of each prompt, undesired and desired, in the order in which prompts first come up."""
    found: dict[str, tuple[list[Conversation], list[Conversation]]] = {}
    for side, rows in enumerate((undesired, desired)):
        for row in rows:
            found.setdefault(repr(row.prompt.messages), ([], []))[side].append(row)
    for i, sides in enumerate(found.values()):
        if not all(sides):
            lacking = "desired" if sides[0] else "undesired"
            text = (sides[0] or sides[1])[0].prompt.messages[-1]["content"]
            raise InputError(f"prompt {i} ({text[:40]!r}) has no {lacking} completion: give one, or leave it out")
    if not found:
        raise InputError("attribution: no completions given; give undesired and desired ones to the same prompts")
    return list(found.values())


def _table(moments: Moments) -> pd.DataFrame:
    change, reach = paired_change(moments), half_width(moments)
    p = np.where((change.delta == 0) & ~(reach > 0), np.nan, change.p)  # nothing was there to be attributed
    rank = np.empty(len(p), dtype=np.int64)
    rank[np.argsort(-change.delta, kind="stable")] = np.arange(1, len(p) + 1)
    columns = {"latent": np.arange(len(p)), "attribution": change.delta}
    spread = {"low": change.delta - reach, "high": change.delta + reach, "effect": change.effect}
    return pd.DataFrame(columns | spread | {"p": p, "q": q_values(p), "rank": rank})
