"""Feature sets: identification against slow references, set algebra, files, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from geometry.features import FeatureSet, disjoint, identify_features, overlap_table, statistics_table
from geometry.features.ranking import STATISTICS, contrast, rank_latents
from geometry.features.rows import row_latents
from geometry.features.sets import check_fits
from probes.capture import capture
from probes.errors import InputError
from probes.store import ActivationStore
from saes.sae import SparseAutoencoder


def reference(statistic: str, positive: np.ndarray, negative: np.ndarray) -> float:
    """The statistic of one latent, the textbook way."""
    labels = [1] * len(positive) + [0] * len(negative)
    values = np.concatenate([positive, negative])
    if statistic == "mean_diff":
        return positive.mean() - negative.mean()
    if statistic == "freq_diff":
        return (positive > 0).mean() - (negative > 0).mean()
    if statistic == "auroc":
        return float(roc_auc_score(labels, values))
    return 0.0 if values.std() == 0 else float(stats.pearsonr(labels, values).statistic)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_equal_the_textbook(sae, residuals, statistic):
    features = identify_features(residuals[:15] + 0.5, residuals[15:], sae, k=6, statistic=statistic)
    positive, negative = (row_latents(x, sae).numpy() for x in (residuals[:15] + 0.5, residuals[15:]))
    expected = [reference(statistic, positive[:, i], negative[:, i]) for i in range(sae.d_sae)]
    best = sorted(range(sae.d_sae), key=lambda i: (-round(expected[i], 12), i))[:6]
    assert features.effect == pytest.approx([expected[i] for i in features.latents], abs=1e-10)
    assert sorted(features.effect, reverse=True) == pytest.approx([expected[i] for i in best], abs=1e-10)


def reference_p(statistic: str, positive: np.ndarray, negative: np.ndarray) -> float:
    """The one-sided test of one latent by SciPy's own function."""
    with np.errstate(all="ignore"):
        if statistic == "mean_diff":
            return float(stats.ttest_ind(positive, negative, equal_var=False, alternative="greater").pvalue)
        if statistic == "freq_diff":
            table = [[(x > 0).sum(), (x <= 0).sum()] for x in (positive, negative)]
            return float(stats.fisher_exact(table, alternative="greater").pvalue)
        if statistic == "auroc":
            return float(stats.mannwhitneyu(positive, negative, alternative="greater", method="asymptotic").pvalue)
        labels = [1] * len(positive) + [0] * len(negative)
        return float(stats.pearsonr(labels, np.concatenate([positive, negative]), alternative="greater").pvalue)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_tests_equal_scipys(statistic):
    """Latents full of ties, as latents are; q is that of Benjamini and Hochberg over those that vary."""
    values = torch.randint(-2, 4, (23, 40), generator=torch.Generator().manual_seed(2)).double().relu()
    values[:, 3], values[:, 8] = 0, 2  # never fires; always the same
    found = contrast(values[:11], values[11:], statistic=statistic)
    mine, other = values[:11].numpy(), values[11:].numpy()
    varies = [i for i in range(40) if i not in (3, 8)]
    expected = np.array([reference_p(statistic, mine[:, i], other[:, i]) for i in varies])
    assert np.allclose(found.p[varies], expected, rtol=1e-6, atol=1e-9) and found.p[[3, 8]].tolist() == [1, 1]
    ordered = np.argsort(expected)
    steps = expected[ordered] * len(varies) / np.arange(1, len(varies) + 1)
    adjusted = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    assert np.allclose(found.q[varies][ordered], adjusted, rtol=1e-6) and found.q[[3, 8]].tolist() == [1, 1]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_noise_is_seldom_significant(statistic):
    """Of 60 data sets without an effect at most one in ten has a latent of q below .05 (the rate that q promises)."""
    generator, false = torch.Generator().manual_seed(11), 0
    for _ in range(60):
        values = torch.randn(24, 50, generator=generator).double().relu()
        false += bool((contrast(values[:12], values[12:], statistic=statistic).q < 0.05).any())
    assert false <= 6


def test_the_table_holds_every_statistic(sae, residuals):
    table = statistics_table(residuals[:15] + 0.5, residuals[15:], sae).set_index("latent")
    for statistic in STATISTICS:
        one = identify_features(residuals[:15] + 0.5, residuals[15:], sae, k=5, statistic=statistic)
        assert table.loc[list(one), statistic].tolist() == pytest.approx(one.effect)
        assert table.loc[list(one), f"q_{statistic}"].tolist() == pytest.approx(one.q)
    assert table.mean_diff.is_monotonic_decreasing


def test_overlap_is_weighed_against_chance_and_removed(sae):
    sets = {"a": FeatureSet.of(sae, range(8)), "b": FeatureSet.of(sae, range(6, 14)), "c": FeatureSet.of(sae, (7, 50))}
    table = overlap_table(sets)
    assert table.latents.tolist() == [(6, 7), (7,), (7,)] and table.expected.tolist() == [1, 0.25, 0.25]
    orders = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    drawn = (orders[:, :8] < 8).sum(dim=1)
    assert table.p[0] == pytest.approx(float((drawn >= 2).double().mean()), abs=0.03)
    assert {name: one.latents for name, one in disjoint(sets).items()} == {
        "a": tuple(range(6)),
        "b": tuple(range(8, 14)),
        "c": (50,),
    }
    for bad, message in (
        ({"a": sets["a"]}, "1 feature set"),
        (sets | {"d": sets["a"].top(0)}, "d feature set is empty"),
    ):
        with pytest.raises(InputError, match=message):
            overlap_table(bad)
    with pytest.raises(InputError, match="a set shares all its 8"):
        disjoint({"a": sets["a"], "b": sets["a"]})


def test_a_set_knows_its_sae_and_its_data(sae, residuals, tmp_path):
    features = identify_features(residuals[:20] + 1, residuals[20:], sae, k=3, data="pushed")
    assert features.made == {"data": "pushed", "positive": 20, "negative": 20, "shuffles": 0}
    features.save(tmp_path / "set.json")
    assert FeatureSet.load(tmp_path / "set.json") == features
    check_fits(features, sae.to(dtype=torch.bfloat16), "first")  # another number type is the same SAE
    with pytest.raises(InputError, match="two SAEs go by the name toy"):
        check_fits(features, replace(sae, W_dec=sae.W_dec.flip(0)), "first")


def test_significant_latents_are_those_below_the_rate(sae, residuals):
    pushed = residuals + 6 * sae.directions[7] + 5 * sae.directions[30]
    features = identify_features(pushed[:20], residuals[20:], sae, k=6)
    kept = features.significant(0.01)
    assert {7, 30} <= set(kept) and len(kept) < 6 and max(kept.q) <= 0.01
    with pytest.raises(InputError, match="not tested"):
        FeatureSet.of(sae, (1,)).significant()


def test_planted_latents_are_found_with_small_p(sae, residuals):
    pushed = residuals + 6 * sae.directions[7] + 5 * sae.directions[30]
    generator = torch.Generator().manual_seed(3)
    features = identify_features(pushed[:20], residuals[20:], sae, k=2, n_permutations=199, generator=generator)
    assert features.latents == (7, 30)
    assert features.p == (1 / 200, 1 / 200)


def test_p_is_the_share_of_shuffles_whose_best_latent_reaches_it():
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(9, 7, generator=generator).double().relu()
    ranked = rank_latents(values[:4], values[4:], k=2, statistic="mean_diff", n=50, generator=generator.manual_seed(6))
    orders = torch.rand(50, 9, generator=torch.Generator().manual_seed(6)).argsort(dim=1)
    is_first = orders < 4  # a shuffle gives row j the weight of row order[j]
    largest = [float((values[m].mean(0) - values[~m].mean(0)).max()) for m in is_first]
    expected = [(1 + sum(x >= e - 1e-12 for x in largest)) / 51 for e in ranked.effect]
    assert ranked.p == pytest.approx(expected)


def test_same_generator_same_p(sae, residuals):
    def run():
        generator = torch.Generator().manual_seed(1)
        return identify_features(residuals[:20] + 1, residuals[20:], sae, k=3, n_permutations=30, generator=generator)

    assert run() == run()
    assert identify_features(residuals[:20] + 1, residuals[20:], sae, k=3).p is None


def test_token_rows_are_encoded_before_they_are_averaged(sae, tokens):
    rows = row_latents(tokens, sae)
    for row, conversation in enumerate((0, 2, 3, 5, 9)):
        inside = (tokens.conversation_index == conversation) & tokens.in_response
        expected = sae.encode(tokens.at(1)[inside]).double().mean(0)
        assert torch.allclose(rows[row], expected, atol=1e-6)
    assert not torch.allclose(rows[0], sae.encode(tokens.at(1)[:8][3:].mean(0)).double(), atol=1e-2)


def test_decoder_scale_does_not_matter(sae, residuals):
    scale = torch.linspace(0.1, 5, sae.d_sae)
    other = replace(sae, kind="standard", k=None)
    scaled = replace(other, W_enc=other.W_enc / scale, b_enc=other.b_enc / scale, W_dec=other.W_dec * scale[:, None])
    assert torch.allclose(row_latents(residuals, other), row_latents(residuals, scaled), atol=1e-5)


def test_set_algebra(sae):
    a, b = FeatureSet.of(sae, (5, 3, 9), effect=(3.0, 2.0, 1.0)), FeatureSet.of(sae, (9, 8))
    assert a.without(b).latents == (5, 3) and a.without(b).effect == (3, 2)
    assert a.overlap(b) == b.overlap(a) == (9,)
    assert a.jaccard(b) == 1 / 4 and a.jaccard(a) == 1
    assert a.without(a).latents == () and len(a) == 3 and 9 in a and list(a.top(2)) == [5, 3]
    assert a.index.tolist() == [5, 3, 9]


def test_json_round_trip(sae, tmp_path):
    features = replace(FeatureSet.of(sae, (5, 3), effect=(0.1, 1 / 3)), p=(0.5, 0.25))
    for number, one in enumerate((features, FeatureSet.of(sae, ()))):
        one.save(tmp_path / f"{number}.json")
        assert FeatureSet.load(tmp_path / f"{number}.json") == one


def test_a_file_of_something_else_is_refused(tmp_path):
    for text in ("[]", '{"format": "x"}', '{"format": "persona-geometry/features/2", "p": null}', '{"a"'):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(InputError):
            FeatureSet.load(tmp_path / "f.json")


def test_hostile_name_is_escaped(sae):
    features = FeatureSet.of(replace(sae, name="<script>"), (1,), statistic="<b>")
    assert "<script>" not in features._repr_html_() and "by <b>" not in features._repr_html_()


def bad_residuals(residuals):
    broken = residuals.clone()
    broken[4, 2] = torch.nan
    return broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"positive": bad_residuals(r)}, "row 4"),
        (lambda r: {"positive": r[:1]}, "at least 2 rows"),
        (lambda r: {"positive": r[:0]}, "no rows"),
        (lambda r: {"positive": r[:, :5], "negative": r[:, :5]}, "width"),
        (lambda r: {"k": 0}, "k=0"),
        (lambda r: {"k": 65}, "k=65"),
        (lambda r: {"k": 60}, "only"),
        (lambda r: {"statistic": "vibes"}, "vibes"),
        (lambda r: {"negative": r[:20], "k": 1}, "only 0"),
    ],
)
def test_bad_contrasts_are_refused(sae, residuals, change, message):
    given = {"positive": residuals[:20], "negative": residuals[20:], "k": 3} | change(residuals)
    with pytest.raises(InputError, match=message):
        identify_features(given.pop("positive"), given.pop("negative"), sae, **given)


def test_bad_sets_are_refused(sae):
    for latents, message in (((1, 1), "twice"), ((64,), "does not exist"), ((-1,), "does not exist")):
        with pytest.raises(InputError, match=message):
            FeatureSet.of(sae, latents)
    for effect, message in (((1.0,), "2 latents"), ((1.0, float("nan")), "NaN")):
        with pytest.raises(InputError, match=message):
            FeatureSet.of(sae, (1, 2), effect=effect)
    with pytest.raises(InputError, match="different SAEs"):
        FeatureSet.of(sae, (1,)).overlap(FeatureSet.of(replace(sae, name="other"), (1,)))
    with pytest.raises(InputError, match="empty"):
        FeatureSet.of(sae, ()).jaccard(FeatureSet.of(sae, ()))


def test_bad_activations_are_refused(sae, tokens):
    with pytest.raises(InputError, match="means"):
        row_latents(replace(tokens, pool="response_mean"), sae)
    with pytest.raises(InputError, match="row 2 has no response"):
        row_latents(replace(tokens, in_response=tokens.in_response & (tokens.conversation_index != 3)), sae)
    with pytest.raises(InputError, match="not captured"):
        row_latents(tokens, replace(sae, layer=7))


def test_from_a_model_to_a_set(tiny_model, tiny_conversations, tmp_path):
    """Captured tokens of a real forward, in memory and from a store, give the same rows and the same set."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    zeros = (torch.zeros(48), torch.zeros(32))
    sae = SparseAutoencoder(decoder.T.clone(), decoder, *zeros, kind="topk", layer=2, k=4, name="tiny")
    asked = {"layers": [2], "pool": "tokens", "batch_size": 2}
    memory, store = capture(tiny_model, tiny_conversations, **asked), ActivationStore.create(tmp_path / "store")
    capture(tiny_model, tiny_conversations, store=store, **asked)
    assert torch.allclose(row_latents(store, sae), row_latents(memory, sae))
    halves = (memory.conversation_index < 2, memory.conversation_index >= 2)
    features = identify_features(memory.select(halves[0]), memory.select(halves[1]), sae, k=2)
    assert len(features) == 2 and features.layer == 2 and features.sae_name == "tiny"
