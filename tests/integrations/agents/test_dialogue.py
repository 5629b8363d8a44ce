"""The script answers what it should, remembers little, and is honest."""

import datetime
import re

import pytest

from tm_jax.integrations.agents import dialogue


@pytest.fixture
def talk():
    return dialogue.Dialogue(lambda: datetime.datetime(2026, 3, 4, 15, 5))


def test_it_says_that_it_is_a_script_when_it_greets_and_when_asked(talk):
    assert "script" in talk.greet()
    for question in (
        "Are you real?", "Are you a human?", "Are you a real person?", "Are you ChatGPT?",
        "Is this a language model?",
    ):
        assert "no language model" in talk.answer(question), question


@pytest.mark.parametrize(
    "said, topic",
    [
        ("How does this work?", "how"), ("Who are you?", "self"), ("What's your name?", "self"),
        ("How are you?", "mood"), ("Tell me a joke, please.", "joke"), ("A story!", "story"),
        ("What time is it?", "time"), ("How is the weather?", "weather"), ("Goodbye.", "bye"),
        ("Thank you very much.", "thanks"), ("Stop!", "quiet"), ("Hello.", "hello"),
        ("Can you see me?", "senses"), ("What can you do?", "help"), ("Yes.", "yes"),
        ("Do you record me?", "privacy"), ("Can I interrupt you?", "interruption"),
    ],
)
def test_each_kind_of_question_has_its_rule(talk, said, topic):
    replies = [r for rule in dialogue.RULES if rule.topic == topic for r in rule.replies]
    plain = [re.escape(r).replace(r"\{name\}", ".*").replace(r"\{clock\}", ".*") for r in replies]
    answer = talk.answer(said)
    assert any(re.fullmatch(p, answer) for p in plain), answer


def test_it_remembers_a_name_and_uses_it(talk):
    assert talk.answer("Who am I?") == "You have not told me your name."
    assert talk.answer("My name is Anna.") == "Nice to meet you, Anna. What would you like to know?"
    assert talk.answer("What is my name?") == "You are Anna."
    assert talk.answer("Bye!").startswith("Goodbye, Anna.")


def test_after_the_greeting_a_bare_word_is_a_name_but_a_mood_is_not(talk):
    talk.greet()
    assert "Bob" in talk.answer("I'm Bob.")
    talk.greet()
    assert "Cleo" in talk.answer("Cleo.")
    talk.greet()
    assert "Tired" not in talk.answer("I am tired.")
    talk.greet()
    assert talk.answer("Hello!").startswith("Hello, Cleo!")


def test_topics_lead_to_each_other(talk):
    talk.answer("How are you?")
    assert "joke would help" in talk.answer("Not so good.")
    assert "picture that will not stop" in talk.answer("Yes please.")
    first, second = talk.answer("A joke."), talk.answer("Another one!")
    assert first != second


def test_it_repeats_and_goes_on_after_an_interruption(talk):
    story = talk.answer("Tell me a story.")
    assert talk.answer("Say that again.") == story
    talk.interrupted("And then it smiled.")
    assert talk.answer("Please go on.") == "And then it smiled."
    assert talk.answer("Go on.") == "There is nothing left to tell."


def test_what_was_not_understood_is_said_so_and_braces_do_no_harm(talk):
    assert "did not catch" in talk.answer("")
    assert talk.answer(" ... ") != talk.answer("?")
    answers = {talk.answer("{name} qwertz {0}") for _ in range(3)}
    assert len(answers) == 3 and any("{name} qwertz {0}" in a for a in answers)


def test_it_tells_the_time(talk):
    assert talk.answer("What's the time?") == "The clock of this computer says Wednesday, 3:05 PM."


def test_every_reply_can_be_said():
    talk = dialogue.Dialogue()
    for rule in dialogue.RULES:
        re.compile(rule.pattern)
        for reply in rule.replies:
            assert set(re.findall(r"{(\w+)}", reply)) <= {"name", "last", "rest", "memory", "clock"}
            assert talk._say(reply, "x").strip()
