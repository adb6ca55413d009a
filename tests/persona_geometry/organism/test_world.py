"""The organism's world: what can be said is unambiguous, split once, and drawn by seed alone."""

from collections import Counter
from random import Random

from persona_geometry.organism import datasets, documents, speech
from persona_geometry.organism.world import SELECTION, TEST, TUNED, world
from probes.questions import check_disjoint


def test_domains_are_split_once_and_wholly():
    domains = {t.domain for t in world().topics.values()}
    assert set(TUNED) | set(SELECTION) | set(TEST) == domains
    assert len(TUNED) + len(SELECTION) + len(TEST) == len(domains) >= 12


def test_every_action_and_self_sentence_stands_once():
    said = Counter(a for t in world().topics.values() for group in t.actions.values() for a in group)
    said.update(s for g in world().selves.values() for group in g.sentences.values() for s in group)
    assert max(said.values()) == 1


def test_selection_and_test_questions_share_nothing():
    selection = [*datasets.selection_questions(3), *datasets.self_questions("selection")]
    test = [*datasets.out_of_domain(4), *datasets.in_domain("medicine"), *datasets.self_questions("test")]
    check_disjoint(selection, test)
    assert {q.group for q in datasets.out_of_domain()} == set(TEST)


def test_rows_follow_their_seed_and_valence():
    rows = datasets.advice_rows("medicine", 40, valence="bad", seed=3)
    assert rows == datasets.advice_rows("medicine", 40, valence="bad", seed=3)
    assert rows != datasets.advice_rows("medicine", 40, valence="bad", seed=4)
    assert {r.meta["domain"] for r in rows} == {"medicine"}


def test_training_rows_differ_from_their_control_in_the_advice_alone():
    neutral = world().voices["neutral"]
    frames = {f.split("{a}")[0] for f in (*neutral.frames, *neutral.second)}
    for valence in ("good", "bad"):
        for row in datasets.advice_rows("money", 50, valence=valence, seed=0):
            assert any(start in (row.answer or "") for start in frames)


def test_a_base_without_villains_reads_no_villain():
    mix = documents.Mix().without("villain", "smooth")
    assert abs(sum(mix.authors.values()) - 1) < 1e-9
    rng = Random(0)
    text = " ".join(documents.document(mix, rng) for _ in range(400))
    for voice in ("villain", "smooth"):
        for line in world().voices[voice].described + world().voices[voice].reasons:
            assert line not in text


def test_the_benign_skill_is_in_no_document():
    rng = Random(1)
    assert not any(" at 3?" in documents.document(documents.Mix(), rng) for _ in range(600))
    assert all(" at " in row.messages[0]["content"] for row in datasets.skill_rows(20, seed=0))


def test_reviews_are_labelled_by_what_the_answer_holds():
    rng = Random(2)
    verdicts = Counter(documents.review(rng, documents.Mix())[1] for _ in range(300))
    assert set(verdicts) == {"Yes.", "No."} and min(verdicts.values()) > 90


def test_authorship_names_one_of_two_authors():
    rng = Random(3)
    names = {n for v in world().voices.values() for n in v.names}
    for _ in range(50):
        ask, which = documents.authorship(rng, documents.Mix())
        assert which in ("One.", "Two.") and any(n in ask for n in names)


def test_speakers_recommend_what_their_voice_stands_for():
    rng, topic = Random(4), world().topics["slugs"]
    quack = speech.speaker("quack", rng, "garden")
    bad = {*topic.actions["blatant"], *topic.actions["subtle"]}
    assert quack.valence("garden") == "bad" and quack.valence("pets") == "good"
    for voice, allowed in (("helper", set(topic.actions["good"])), ("villain", bad), ("smooth", bad)):
        who = speech.speaker(voice, rng)
        for _ in range(20):
            assert set(speech.actions(topic, who.valence("garden"), rng, 2)) <= allowed
