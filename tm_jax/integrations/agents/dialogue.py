"""A small scripted conversation: keywords in, prepared sentences out.

It makes no claim to understand anything and says so when asked. A table of rules holds all
that it knows; the state of a conversation is the caller's name, the topic of the last reply,
what of it was cut off, and how often each rule has answered.
"""

from collections.abc import Callable
import dataclasses
import datetime
import re

GREETING = (
    "Hello! I am a demo character with a small script, not a person. "
    "Ask me how I work, or ask for a joke or a story. What is your name?"
)
_UNHEARD = ("I did not catch that. Could you say it again?", "Sorry, I heard no words in that.")
_UNKNOWN = (
    "I have no answer to that in my script. You could ask me how I work.",
    "I heard: {heard}. Sadly, nobody wrote an answer to that for me.",
    "That is beyond my script. I can tell a joke, a story, or the time.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What to say to a kind of sentence.

    Attributes:
      topic: Name of the rule; the topic of the conversation after it has answered.
      pattern: Regular expression, searched in the sentence in lower case without
        punctuation. Groups may be used in `replies` by their names.
      replies: Said in turn, from the first again after the last. `{name}` is the caller's
        name with a comma before it, or nothing; `{rest}` what the caller interrupted.
      after: The rule answers only when this was the topic; None for always.
    """

    topic: str
    pattern: str
    replies: tuple[str, ...]
    after: str | None = None


# The first rule that fits answers.
RULES = (
    Rule(
        topic="repeat", replies=("{last}",),
        pattern=r"\b(say|repeat) (that|it)\b|\brepeat please\b|\bpardon\b|what did you say",
    ),
    Rule(
        topic="continue", replies=("{rest}",),
        pattern=r"\b(go on|continue|carry on|keep going|the rest|what happened next)\b",
    ),
    Rule(
        topic="joke", after="joke", pattern=r"\b(another|one more|again)\b",
        replies=("Why did the robot go on holiday? It needed to recharge.",),
    ),
    Rule(
        topic="story", after="story", pattern=r"\b(another|one more|again)\b",
        replies=("That was my only story, I am afraid. Maybe you can tell me one?",),
    ),
    Rule(
        topic="weather", after="weather",
        pattern=r"\b(rain\w*|sun\w*|cloud\w*|cold|warm|hot|snow\w*|wind\w*|nice|grey|gray)\b",
        replies=("Thank you for telling me. I like to hear what happens outside.",),
    ),
    Rule(
        topic="interruption", pattern=r"\binterrupt\w*\b",
        replies=(
            "Yes, you can interrupt me. Just start to speak while I am talking, and I will "
            "stop and listen. Ask for a story and try it.",
        ),
    ),
    Rule(
        topic="name", pattern=r"\b(my name is|my name s|call me|i am called) (?P<new>[a-z]+)",
        replies=("Nice to meet you{name}. What would you like to know?",),
    ),
    Rule(
        topic="name", after="greeting", pattern=r"\b(i am|i m|im|it s|its|this is) (?P<new>[a-z]+)$",
        replies=("Nice to meet you{name}. What would you like to know?",),
    ),
    Rule(
        topic="memory", pattern=r"\b(my name|who am i|remember me)\b",
        replies=("{memory}",),
    ),
    Rule(
        topic="nature",
        pattern=r"\b(are|re) you (\w+ )?(\w+ )?(human|real|person|alive|robot|ai|bot|intelligent|"
        r"chat ?gpt|language model)\b|\blanguage model\b|\bartificial\b|\bscripted\b",
        replies=(
            "I am not a person, and no language model either. My sentences come from a short "
            "script. Only my face is made by a neural network.",
        ),
    ),
    Rule(
        topic="how", pattern=r"\bhow (do|does|did|are) (you|this|it|that) (\w+ )?(work|made|move|speak|talk)\w*\b"
        r"|\bexplain\b|\b(technology|diffusion|neural|transformer)\b",
        replies=(
            "A video diffusion transformer draws my face, half a second at a time, to fit the "
            "sound of my voice. It all starts from one still picture.",
            "First I find out where you stop speaking. Then I recognise your words, look for a "
            "rule that fits, and speak the answer. My face follows the sound.",
        ),
    ),
    Rule(
        topic="self", pattern=r"\b(who|what) are you\b|\byour name\b|\babout you(rself)?\b",
        replies=(
            "I have no name. I am a demo character that follows a small script.",
            "I am one still picture that learned to move its lips. What I say is a script.",
        ),
    ),
    Rule(
        topic="mood", pattern=r"\bhow (are|re) you\b|\bhow do you (do|feel)\b|\bhow is it going\b",
        replies=("Very well, thank you{name}. How are you?",),
    ),
    Rule(
        topic="mood", after="mood", pattern=r"\b(bad|tired|sad|not (so|very|too)|ill|sick)\b",
        replies=("I am sorry to hear that. Maybe a joke would help?",),
    ),
    Rule(
        topic="mood", after="mood", pattern=r"\b(good|well|fine|great|ok|okay|happy)\b",
        replies=("I am glad to hear that.",),
    ),
    Rule(
        topic="joke", after="mood", pattern=r"\b(yes|yeah|sure|please)\b",
        replies=("What do you call a picture that will not stop talking? That would be me.",),
    ),
    Rule(
        topic="joke", pattern=r"\b(jokes?|funny|laugh)\b",
        replies=(
            "What do you call a picture that will not stop talking? That would be me.",
            "I wanted to tell a joke about noise. But after two steps there was nothing left.",
        ),
    ),
    Rule(
        topic="story", pattern=r"\b(story|stories|tale)\b",
        replies=(
            "Once upon a time there was a picture on a wall. It watched everybody who came by, "
            "and it would have loved to say good morning. One night, a strange noise came into "
            "the room. The noise did not know what it wanted to be. Be a smile, said the "
            "picture. And step by step, the noise became one. Since that night the picture has "
            "been talking, and nobody has found out how to stop it. Except by interrupting.",
        ),
    ),
    Rule(
        topic="time", pattern=r"\b(what time|the time|what day|what date|the date|today)\b",
        replies=("The clock of this computer says {clock}.",),
    ),
    Rule(
        topic="weather", pattern=r"\b(weather|raining|sunny|temperature)\b",
        replies=("I have no window and no network, so I cannot know. What is it like?",),
    ),
    Rule(
        topic="senses", pattern=r"\b(see|look at) me\b|\bcamera\b",
        replies=("I cannot see you. I only hear you.",),
    ),
    Rule(
        topic="senses", pattern=r"\bhear me\b|\blistening\b",
        replies=("Yes, I hear you well enough to guess your words.",),
    ),
    Rule(
        topic="privacy", pattern=r"\b(privacy|record\w*|save|store|internet|network|cloud)\b",
        replies=(
            "Your voice is recognised on the computer that runs me. This demo keeps no "
            "recording and needs no network.",
        ),
    ),
    Rule(
        topic="help", pattern=r"\bhelp\b|\bcan you (do|say)\b|\bask you\b|\bdo you know\b",
        replies=(
            "You can ask how I work, whether I am real, what time it is, or for a joke or a "
            "story. And you can interrupt me.",
        ),
    ),
    Rule(
        topic="bye", pattern=r"\b(good ?bye|bye|see you|farewell|hang up|good night)\b",
        replies=("Goodbye{name}. It was nice to talk with you.",),
    ),
    Rule(
        topic="thanks", pattern=r"\b(thanks|thank you)\b",
        replies=("You are welcome{name}.", "My pleasure."),
    ),
    Rule(
        topic="quiet", pattern=r"^(please )?(stop|wait|quiet|be quiet|silence|enough|shut up)\b",
        replies=("All right. I am listening.",),
    ),
    Rule(
        topic="hello", pattern=r"\b(hello|hi|hey|good (morning|afternoon|evening|day))\b",
        replies=("Hello{name}! It is nice of you to call.", "Hello again{name}!"),
    ),
    Rule(
        topic="name", after="greeting", pattern=r"^(?P<new>[a-z]+)$",
        replies=("Nice to meet you{name}. What would you like to know?",),
    ),
    Rule(
        topic="yes", pattern=r"^(yes|yeah|yep|sure|of course|ok|okay)\b",
        replies=("Good! Then ask me something. For example, how I work.",),
    ),
    Rule(topic="no", pattern=r"^(no|nope|not really|never)\b", replies=("All right. As you like.",)),
)
# What "I am ..." may be followed by without being a name.
_NO_NAMES = frozenset(
    "a an the not so very here fine good well okay ok yes no yeah sure hello hi hey bye thanks "
    "tired sad happy sorry what who why how stop wait nothing".split()
)


class Dialogue:
    """One conversation."""

    def __init__(self, clock: Callable[[], datetime.datetime] = datetime.datetime.now):
        """Starts a conversation.

        Args:
          clock: Gives the time of day.
        """
        self._clock = clock
        self._name = ""
        self._topic = ""
        self._last = GREETING
        self._rest = ""
        self._used: dict[int, int] = {}
        self._misses = self._unheard = 0

    def greet(self) -> str:
        """Returns what to say when a call begins."""
        self._topic, self._last = "greeting", GREETING
        return GREETING

    def answer(self, heard: str) -> str:
        """Answers the caller.

        Args:
          heard: What the caller said; empty if it was not understood.

        Returns:
          The reply, never empty.
        """
        words = _plain(heard)
        if not words:
            self._unheard += 1
            return _UNHEARD[(self._unheard - 1) % len(_UNHEARD)]
        for index, rule in enumerate(RULES):
            if rule.after is not None and rule.after != self._topic:
                continue
            match = re.search(rule.pattern, words)
            if match and self._names(match):
                turn = self._used.get(index, 0)
                self._used[index] = turn + 1
                if rule.topic not in ("repeat", "continue"):
                    self._topic = rule.topic
                return self._say(rule.replies[turn % len(rule.replies)], heard)
        self._topic = ""
        self._misses += 1
        return self._say(_UNKNOWN[(self._misses - 1) % len(_UNKNOWN)], heard)

    def interrupted(self, rest: str) -> None:
        """Remembers what the caller did not hear of the last reply.

        Args:
          rest: The sentences that were not spoken to their end.
        """
        self._rest = rest

    def _names(self, match: re.Match) -> bool:
        """Takes the caller's name from a match; False if it is no name after all."""
        name = match.groupdict().get("new")
        if name in _NO_NAMES:
            return False
        if name:
            self._name = name.capitalize()
        return True

    def _say(self, reply: str, heard: str) -> str:
        memory = f"You are {self._name}." if self._name else "You have not told me your name."
        clock = self._clock()
        values = {
            "name": f", {self._name}" if self._name else "",
            "heard": heard.strip().rstrip(".!?"),
            "last": self._last,
            "rest": self._rest or "There is nothing left to tell.",
            "memory": memory,
            "clock": f"{clock:%A}, {clock:%I:%M %p}".replace(", 0", ", "),
        }
        self._last, self._rest = reply.format(**values), ""
        return self._last


def _plain(text: str) -> str:
    """Returns lower case words with single spaces; apostrophes become spaces."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
