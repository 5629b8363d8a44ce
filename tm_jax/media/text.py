"""Prompts to token numbers, with the tokenizer files that come with a checkpoint.

Nothing is downloaded: a folder holds `tokenizer.json` (read by `tokenizers`) or, without one,
`spiece.model` (read by `sentencepiece`).
"""

from collections.abc import Sequence
import html
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

LENGTH = 512  # Tokens that Wan2.1 was trained with.
FILES = ("tokenizer.json", "spiece.model")
_END = "</s>"


class Tokens(NamedTuple):
    """Tokens of a batch of prompts.

    Attributes:
      ids: Token numbers, zero past the prompt, int32 [B, L].
      valid: True where a token belongs to the prompt, boolean [B, L].
    """

    ids: np.ndarray
    valid: np.ndarray


def clean(prompt: str) -> str:
    """Mends broken encodings, resolves HTML entities and joins white space, as Wan does."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()


class Tokenizer:
    """The tokenizer of UMT5.

    Attributes:
      length: Tokens of every prompt, padding included.
    """

    def __init__(self, folder: str | os.PathLike, length: int = LENGTH):
        """Reads the tokenizer.

        Args:
          folder: Folder with `tokenizer.json` or `spiece.model`, for example
            `google/umt5-xxl` of a Wan2.1 checkpoint.
          length: Tokens of every prompt; longer prompts are cut.

        Raises:
          FileNotFoundError: The folder or its files are not there.
          ValueError: A file cannot be used; the text gives the reason.
        """
        self.length = length
        folder = pathlib.Path(folder)
        found = [folder / name for name in FILES if (folder / name).is_file()]
        if not found:
            what = "has neither" if folder.is_dir() else "is not a folder with"
            raise FileNotFoundError(
                f"tokenizer: {folder} {what} {' nor '.join(FILES)}; name the folder of the "
                "text encoder's tokenizer that came with the checkpoint."
            )
        read = _fast if found[0].name == FILES[0] else _sentencepiece
        self._pieces, self._end = read(found[0])

    def __call__(self, prompts: str | Sequence[str]) -> Tokens:
        """Tokens of cleaned prompts, each with an end token and padded to `length`.

        Args:
          prompts: One prompt, or B of them.

        Returns:
          Tokens of shape [B, length].
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = np.zeros((len(prompts), self.length), np.int32)
        valid = np.zeros((len(prompts), self.length), bool)
        for i, prompt in enumerate(prompts):
            pieces = self._pieces(clean(prompt))[: self.length - 1] + [self._end]
            ids[i, : len(pieces)] = pieces
            valid[i, : len(pieces)] = True
        return Tokens(ids, valid)


def _fast(path: pathlib.Path):
    """Function from text to numbers without the end token, and the end token's number."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises this very class.
        raise ValueError(f"tokenizer: {path} cannot be read ({error}).") from error
    end = tokenizer.token_to_id(_END)
    if end is None:
        raise ValueError(f"tokenizer: {path} has no end token {_END}; is it UMT5's?")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, end


def _sentencepiece(path: pathlib.Path):
    """As `_fast`, for a sentencepiece model."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"tokenizer: {path} cannot be read ({error}).") from error
    end = model.piece_to_id(_END)
    if end == model.unk_id():
        raise ValueError(f"tokenizer: {path} has no end token {_END}; is it UMT5's?")
    return model.encode, end
