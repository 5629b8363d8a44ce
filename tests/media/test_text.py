"""Prompts to tokens: both kinds of tokenizer file against transformers' own tokenizer."""

import pathlib
import shutil

import numpy as np
import pytest

from tm_jax.media import text

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")
pytest.importorskip("ftfy")
transformers = pytest.importorskip("transformers")

_CORPUS = (
    "A woman looks into the camera and talks to us while the sun sets behind her.",
    "Ein alter Mann sitzt am Fenster und erzählt eine lange Geschichte vom Meer.",
    "一只猫在窗边看着外面的雨。",
    "The picture stays still; only lips, eyes and head move with the voice.",
)
_PROMPTS = (
    "A man talks.", "", "Sun & sea,  <b>rain</b>\tand\n wind", "猫 looks at the sea",
    "unseen: ☃ 12345", " ".join(_CORPUS),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with `spiece.model` alone and with `tokenizer.json` alone."""
    root = tmp_path_factory.mktemp("tokenizer")
    pieces, fast = root / "pieces", root / "fast"
    pieces.mkdir(), fast.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 4), model_prefix=str(pieces / "spiece"),
        vocab_size=150, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        num_threads=1, hard_vocab_limit=False,
    )
    (pieces / "spiece.vocab").unlink()
    made = transformers.T5Tokenizer.from_pretrained(
        pieces, local_files_only=True, extra_ids=0
    )
    made.save_pretrained(root / "all")
    shutil.copy(root / "all" / "tokenizer.json", fast)
    return pieces, fast, made


@pytest.mark.parametrize("kind", [0, 1], ids=text.FILES[::-1])
def test_tokens_equal_the_reference(folders, kind):
    ours = text.Tokenizer(folders[kind], length=40)(_PROMPTS)
    wanted = folders[2](
        [text.clean(prompt) for prompt in _PROMPTS], padding="max_length", truncation=True,
        max_length=40, return_tensors="np",
    )
    np.testing.assert_array_equal(ours.ids, wanted["input_ids"])
    np.testing.assert_array_equal(ours.valid, wanted["attention_mask"])
    assert ours.valid[1].sum() == 1 and ours.ids[1, 0] == 1  # The end token alone.
    assert ours.valid[-1].all() and ours.ids[-1, -1] == 1  # Cut; the end token stays.


def test_one_prompt_of_wans_length(folders):
    tokens = text.Tokenizer(folders[1])("A man talks.")
    assert tokens.ids.shape == tokens.valid.shape == (1, 512)
    assert tokens.ids.dtype == np.int32
    many = text.Tokenizer(folders[1], length=40)(_PROMPTS)
    np.testing.assert_array_equal(tokens.ids[0, :40], many.ids[0])


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("  a\n\tb  c ", "a b c"), ("&lt;b&gt;", "<b>"), ("&amp;lt;", "<"),
        ("schÃ¶n", "schön"), ("\u201cwell\u201d", '"well"'),
    ],
)
def test_clean(prompt, expected):
    assert text.clean(prompt) == expected


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="has neither tokenizer.json nor spiece.model"):
        text.Tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        text.Tokenizer(tmp_path / "absent")
    for name in text.FILES:
        path = pathlib.Path(tmp_path) / name
        path.write_text("not a tokenizer")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            text.Tokenizer(tmp_path)
        path.unlink()


def test_a_tokenizer_of_something_else(tmp_path):
    import tokenizers

    model = tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no end token </s>"):
        text.Tokenizer(tmp_path)
