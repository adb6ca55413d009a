"""Cards: what stands on one, pages that stand alone and stay small, text that nobody vouches for."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from probes import InputError
from saes import CardParts, feature_cards, latent_cards, logit_lens, nearest_latents, neuronpedia_id, top_contexts
from saes.inspect import CardDeck, Context, Detection, LatentCard, Naming, neuronpedia_link
from saes.inspect.html import shown
from tests.persona_geometry.report.browser import CHROMIUM, DESKTOP, PHONE, Browser

EVIL = ("<script>document.title='owned'</script>", "'\"><img src=x onerror=alert(1)>", "</article></style>&amp;")


class Tags(HTMLParser):
    """Every element and attribute of a page, and the links in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.links, self.open = [], set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag


@pytest.fixture
def deck(topk, tiny_model, tiny_conversations) -> CardDeck:
    """Cards of three latents of a random SAE on the tiny conversations."""
    return feature_cards(topk, tiny_model, tiny_conversations, [4, 11, 5])


@pytest.fixture
def hostile(deck) -> CardDeck:
    """The same, with hostile text wherever text can stand."""
    context = Context((*EVIL, "\u202e\ud800\x07\n"), (1.0, 0.0, 2.0, 0.5), 2, 0, copies=2, quantile=0.5)
    name = Naming(EVIL[0], 0.5, Detection(1, 2, 0, 2), None, "<u>namer</u>")
    cards = [
        dataclasses.replace(
            card, top_tokens=EVIL, bottom_tokens=EVIL, contexts=(context,), draws=(context,), naming=name
        )
        for card in deck
    ]
    return dataclasses.replace(deck, cards=tuple(cards), sae_name=EVIL[0], model_name=EVIL[1])


def test_brief_cards(topk, tiny_model, tiny_conversations):
    cards = latent_cards(topk, tiny_model, tiny_conversations, [4, 11], n_contexts=2, n_tokens=3)
    assert list(cards) == [4, 11]
    card = cards[4]
    assert card.top_tokens == tuple(token for token, _ in logit_lens(topk, tiny_model, [4], k=3)[4])
    assert list(card.contexts) == top_contexts(topk, tiny_model, tiny_conversations, [4], n=2)[4]
    plain = json.loads(json.dumps(card.as_dict()))
    assert plain["latent"] == 4 and len(plain["top_tokens"]) == 3 and card.density is None


def test_cards_hold_what_the_single_functions_say(deck, topk, tiny_model, tiny_conversations):
    assert [card.latent for card in deck] == [4, 11, 5] and len(deck) == 3
    assert deck[11].top_tokens == tuple(token for token, _ in logit_lens(topk, tiny_model, [11], k=8)[11])
    assert list(deck[11].neighbours) == nearest_latents(topk, [11])[11]
    assert list(deck[4].contexts) == top_contexts(topk, tiny_model, tiny_conversations, [4])[4]
    assert deck[4].density and deck[4].density.n_tokens == deck.n_tokens and deck.n_conversations == 4
    assert deck[4].partners and deck[4].partners[0].phi > 0
    with pytest.raises(InputError, match="latent 6 has no card"):
        deck[6]


def test_a_latent_is_drawn_alike_beside_any_others(deck, topk, tiny_model, tiny_conversations):
    alone = feature_cards(topk, tiny_model, tiny_conversations, [5])
    assert alone[5].draws == deck[5].draws and alone[5].density == deck[5].density


def test_blocks_of_rows_change_nothing(deck, topk, tiny_model, tiny_conversations, monkeypatch):
    for module in ("cards", "reading"):
        monkeypatch.setattr(f"saes.inspect.{module}.block_rows", lambda d_sae: 7)
    for partners in (5, 0):
        parts = CardParts(partners=partners)
        card = feature_cards(topk, tiny_model, tiny_conversations, [11], parts=parts)[11]
        assert card.density == deck[11].density and card.contexts == deck[11].contexts
        assert [one.latent for one in card.partners] == [one.latent for one in deck[11].partners][:partners]


def test_parts_can_be_left_out(topk, tiny_model, tiny_conversations):
    parts = CardParts(contexts=0, quantiles=(), tokens=0, neighbours=0, partners=0, held_out=0)
    card = feature_cards(topk, tiny_model, tiny_conversations, [4], parts=parts)[4]
    assert card == LatentCard(4, (), (), (), density=card.density) and card.density
    assert "writes" not in card._repr_html_() and "strongest" not in card._repr_html_()


def test_a_page_stands_alone(deck, tmp_path):
    [path] = deck.write(tmp_path / "cards.html")
    page = path.read_text(encoding="utf-8")
    found = Tags(page)
    assert found.open == [] and page.count("<article") == 3
    assert not {"script", "iframe", "object", "embed", "link", "img", "form"} & set(found.tags)
    assert found.links == ["#latent-4", "#latent-11", "#latent-5"]
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    assert f"{deck.n_tokens:,} tokens of 4 texts" in page and "width=device-width" in page


@pytest.mark.parametrize("make", [CardDeck.html, CardDeck._repr_html_], ids=["page", "notebook"])
def test_hostile_text_is_inert(hostile, make):
    page = make(hostile)
    found = Tags(page)
    assert found.open == [] and not {"script", "img"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert page.encode("utf-8") and "\x07" not in page and "\u2407" in page
    assert "&lt;script&gt;" in page and "2 alike" in page


def test_text_can_be_hidden(hostile):
    page = hostile.html(text=False).split("</header>")[1]
    assert not any(shown(text) in page for text in EVIL) and "alike" not in page
    assert "fires on" in page and "decoder cosine" in page and "balanced accuracy 0.75" in page


def test_a_notebook_shows_cards_and_passages(deck):
    card = deck[4]
    html = card._repr_html_()
    assert html.startswith("<style>") and "Latent 4" in html and Tags(html).open == []
    context = card.contexts[0]._repr_html_()
    assert shown(card.contexts[0].tokens[card.contexts[0].peak]) in context
    assert card.figure().data[0].type == "bar"


def test_a_hundred_cards_stay_small(topk, tiny_model, tiny_conversations, tmp_path):
    many = feature_cards(topk, tiny_model, tiny_conversations, range(10))
    cards = [dataclasses.replace(card, latent=i) for i, card in enumerate(list(many) * 10)]
    deck = dataclasses.replace(many, cards=tuple(cards))
    [whole] = deck.write(tmp_path / "whole.html")
    assert whole.stat().st_size < 3e6 and whole.read_text(encoding="utf-8").count("<article") == 100
    pages = deck.write(tmp_path / "split.html", per_page=30)
    assert [page.name for page in pages] == ["split.html", "split-2.html", "split-3.html", "split-4.html"]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert [text.count("<article") for text in texts] == [30, 30, 30, 10]
    found = sorted(int(i) for text in texts for i in re.findall(r"id='latent-(\d+)'", text))
    assert found == list(range(100)) and "split-3.html" in texts[0]


def test_a_deck_goes_to_json(deck, tmp_path):
    [path] = deck.write(tmp_path / "cards.json")
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert [card["latent"] for card in plain["cards"]] == [4, 11, 5] and plain["layer"] == 2
    with pytest.raises(InputError, match=r"ends in \.html or \.json"):
        deck.write(tmp_path / "cards.pdf")


def test_links(topk, tiny_model, tiny_conversations):
    name = "gemma-2-2b/20-gemmascope-res-16k"
    deck = feature_cards(topk, tiny_model, tiny_conversations, [4], neuronpedia=name)
    assert Tags(deck.html()).links == ["#latent-4", f"https://www.neuronpedia.org/{name}/4"]
    with pytest.raises(InputError, match="give modelId/saeId"):
        neuronpedia_link("javascript:alert(1)//", 4)


def test_the_directory_of_sae_lens_knows_neuronpedias_names():
    found = neuronpedia_id("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    assert found == "gpt2-small/8-res-jb" and neuronpedia_link(found, 7).endswith("/gpt2-small/8-res-jb/7")
    assert neuronpedia_id("gpt2-small-res-jb", "blocks.99.hook_resid_pre") is None
    assert neuronpedia_id("no such release", "x") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents": []}, "no latents given"),
        ({"latents": [3, 3]}, "named twice"),
        ({"latents": [64]}, "latent 64 does not exist"),
        ({"skip": -1}, "skip=-1"),
        ({"skip": 10_000}, "no token counts"),
        ({"neuronpedia": "x y/z"}, "modelId/saeId"),
    ],
)
def test_bad_input(change, said, topk, tiny_model, tiny_conversations):
    asked = {"latents": [4]} | change
    with pytest.raises(InputError, match=said):
        feature_cards(topk, tiny_model, tiny_conversations, **asked)


@pytest.mark.parametrize(
    ("change", "said"), [({"contexts": -1}, "contexts=-1"), ({"quantiles": (1.5,)}, "quantile 1.5")]
)
def test_bad_parts(change, said):
    with pytest.raises(InputError, match=said):
        CardParts(**change)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_browser_runs_nothing_and_fetches_nothing(hostile, screen, tmp_path):
    [path] = hostile.write(tmp_path / "cards.html")
    browser = Browser()
    try:
        browser.open(path, screen=screen)
        seen = "[document.title.startsWith('Feature cards'), document.scripts.length, document.images.length]"
        assert browser.script(seen) == [True, 0, 0]
        assert browser.script("document.documentElement.scrollWidth <= innerWidth")
        assert browser.script("document.querySelectorAll('article').length") == 3
        assert browser.requests() == [] and browser.troubles() == []
        shown_text = browser.script("document.querySelector('.p').textContent")
    finally:
        browser.close()
    assert all(text in shown_text for text in EVIL)
