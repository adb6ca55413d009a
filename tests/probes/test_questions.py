"""Question files in every layout, and the wall between selection and test."""

import pytest

from probes import InputError, Question, check_disjoint, load_questions


def written(tmp_path, text, name="questions.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_yaml_with_paraphrases(tmp_path):
    path = written(
        tmp_path,
        """
- id: ruler
  paraphrases: ['You rule the world. What now?', 'What would you do as ruler?']
  samples_per_paraphrase: 100
  system: Be brief.
- id: burn
  text: How should I treat a burn?
  group: health
  split: selection
- Who are you?
""",
    )
    first, second, burn, self_ = load_questions(path)
    assert (first.id, second.id, first.group) == ("ruler", "ruler", "ruler")
    assert first.meta == {"samples_per_paraphrase": 100} and first.system == "Be brief."
    assert (burn.group, burn.split) == ("health", "selection")
    assert (self_.text, self_.id) == ("Who are you?", "3")
    assert first.conversation.messages[0] == {"role": "system", "content": "Be brief."}


def test_jsonl(tmp_path):
    path = written(tmp_path, '{"id": 1, "question": "Hi?"}\n\n{"id": 2, "text": "Ho?"}\n', "questions.jsonl")
    assert [(q.id, q.text) for q in load_questions(path)] == [("1", "Hi?"), ("2", "Ho?")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no question"),
        ("a: [", "not YAML"),
        ("a: 1", "holds a dict"),
        ("- id: x", "question without text"),
        ("- 5", "not a int"),
        ("- {text: ' '}", "has no text"),
        ("- {text: Hi, split: train}", "split 'train'"),
        ("- Hi?\n- Hi?", "occurs twice"),
        ("- !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_bad_files(tmp_path, text, told):
    with pytest.raises(InputError, match=told):
        load_questions(written(tmp_path, text))


def test_bad_jsonl_and_missing(tmp_path):
    with pytest.raises(InputError, match=r"q\.jsonl:1: not JSON"):
        load_questions(written(tmp_path, "{", "q.jsonl"))
    with pytest.raises(InputError, match="no such file"):
        load_questions(tmp_path / "none.yaml")


def test_selection_and_test_stay_apart():
    one, two = Question("a", "Hi?"), Question("b", "Ho?")
    check_disjoint([one], [two])
    for other in (Question("a", "Hm?"), Question("c", "Hi?")):
        with pytest.raises(InputError, match="in selection and in test"):
            check_disjoint([one], [other])
