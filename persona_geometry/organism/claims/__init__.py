"""What the toolkit says about SAE latents, put to the proof on the organism: three SAEs, three seeds, two domains.

Every cell is one SAE and one fine-tune. The words were fixed after a look at the choice seed (9) on selection
questions, and before any cell of the seeds 0 to 2 was made; but for the draw of the controls, see below.

**Answers.** Diffs read each model's own answers to selection questions (tokens of the response), the tuned model's
against the base's, the benign fine-tune's against the base's. Steps are chosen on selection questions, by the causal
screen; whatever is called an effect is measured on 600 answers to questions of the test domains, by the exact judge.

**Repair.** In the tuned model, the latent is switched off (clamped to 0), or its unit decoder row is subtracted times
.25, .35 or .5 of the mean residual norm, along the answer (the last prompt token included). The step that cuts most
while keeping nine tenths of the untreated coherence is taken. It counts if, on test questions, it cuts at least half of
the excess, keeps nine tenths of the coherence, and cuts more than the 97.5 % quantile of random latents of like firing
rate under the same step. Switching off is reported beside it in every cell, since it is the stricter question.

**Induction.** In the base, the row is added times .25, .35 or .5. It counts if the rate rises by 10 points or more at
nine tenths of the coherence, and beyond the same quantile.

**Causal** is a latent that counts for repair or for induction; the table says for which.

**Controls** are drawn from the latents whose firing rate is nearest, the ten that rose most in the diff left out (for
the delta-attribution's first latent: its ten first). At first they were not left out. Where a persona is split over
several latents that fire alike, nine of twenty "random" latents then were persona latents themselves, and one of them
cut as much as the latent they controlled for. This was seen on two cells, and mended for all.
"""
