"""Recorded dialogues of the game Fish Fillets, by their actors.

Two fish talk: the small one, a woman, and the big one, a man. The Debian packages
`fillets-ng-data-cs` and `fillets-ng-data-nl` hold the recordings in Czech and Dutch, half
an hour and more of everyone; `fillets-ng-data` holds what they say.
"""

import collections
import glob
import os
import re

LANGUAGES = ("cs", "nl")
LICENCE = "GPL-2 (ALTAR interactive and the Fish Fillets authors)"
# The part of a line's name that names the speaker.
_ACTORS = {"m": "small", "v": "big"}
_LINE = re.compile(r'dialogId\("([^"]+)".*\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')


def lines(root: str, language: str) -> dict[str, list[tuple[str, str]]]:
    """The lines of the two actors of a language.

    Args:
      root: Folder of the game's data, with `script` and `sound`.
      language: One of `LANGUAGES`.

    Returns:
      (path of the recording, text) of every line, under "small" and "big"; empty if the
      packages are not installed. A name belongs to one level, which is a folder.
    """
    spoken = collections.defaultdict(list)
    for script in sorted(glob.glob(os.path.join(root, "script", "*", f"dialogs_{language}.lua"))):
        level = os.path.basename(os.path.dirname(script))
        with open(script, encoding="utf-8") as file:
            said = _LINE.findall(file.read())
        for name, text in said:
            path = os.path.join(root, "sound", level, language, f"{name}.ogg")
            parts = name.split("-")
            if len(parts) > 2 and parts[1] in _ACTORS and os.path.exists(path):
                spoken[_ACTORS[parts[1]]].append((path, text.replace("\\", "")))
    return dict(spoken)
