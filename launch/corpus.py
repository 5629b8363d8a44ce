"""Builds the speech corpus: recordings and synthetic voices with phone times.

  python launch/corpus.py --out=runs/corpus --workers=2

Takes what is installed. A missing source is skipped with a warning that names its
Debian package; speakers already in the folder are kept, so a build can be resumed.
"""

import concurrent.futures
import functools
import glob
import gzip
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import re
import shutil
import sys

from absl import flags
from absl import logging
import numpy as np
import tqdm

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common

from tm_jax.data.corpus import alignment
from tm_jax.data.corpus import festival
from tm_jax.data.corpus import fillets
from tm_jax.data.corpus import phones as phones_lib
from tm_jax.data.corpus import refinement
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import synthesis

_OUT = flags.DEFINE_string("out", None, "Corpus folder to write.", required=True)
_MINUTES = flags.DEFINE_float(
    "minutes_synthetic", 24,
    "Minutes of each synthesiser for training; of each Festival voice a quarter of them.",
)
_SOUNDS = flags.DEFINE_string(
    "sounds", "/usr/share/asterisk/sounds", "Recordings of the asterisk-core-sounds."
)
_TRANSCRIPTS = flags.DEFINE_string(
    "transcripts", "/usr/share/doc", "Folder of the transcripts of those recordings."
)
_TESTDATA = flags.DEFINE_string(
    "testdata", "/usr/share/pocketsphinx/test/data", "Data of pocketsphinx-testdata."
)
_GAME = flags.DEFINE_string(
    "game", "/usr/share/games/fillets-ng", "Data of the game fillets-ng, with its dialogues."
)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sentences and voices.")

# Speaker: folder, espeak-ng voice of the language, licence.
_RECORDED = {
    "asterisk_en_allison": ("en_US_f_Allison", "en-us", "CC-BY-SA-3.0"),
    "asterisk_es_allison": ("es_MX_f_Allison", "es-419", "CC-BY-SA-3.0"),
    "asterisk_fr_june": ("fr_CA_f_June", "fr", "CC-BY-SA-3.0"),
    "asterisk_it_carlo": ("it_IT_m_Carlo", "it", "CC-BY-3.0"),
    "asterisk_ru_ivrvoice": ("ru_RU_f_IvrvoiceRU", "ru", "CC-BY-3.0"),
}
_FLITE_VOICES = ("slt", "rms", "kal16", "awb")
_ESPEAK_VOICES = (
    "en-us+m1", "en-us+f1", "en+m3", "en+f3", "en-us+m7", "en-us+f5", "en+m5",
    "en-us+f2", "es-419+m2", "es-419+f4", "fr+m4", "fr+f2", "it+m6", "it+f1", "ru+m3",
    "ru+f4", "de+m1", "de+f5", "de+m7", "es+m5", "fr+f3",
)  # fmt: skip
# A voice of Festival is a person's: each gets this part of a synthesiser's minutes.
_FESTIVAL_PART = 4
_MIN_S, _MAX_S = 0.5, 20.0
_REFINED_S = 300.0  # Speech from which on a model of one speaker alone is trained.
_MAX_DISAGREEMENT_S = 0.06  # Good alignments of two methods lie 10 to 40 ms apart.

# Sentences for the synthesisers: one choice from every column, in order.
_GRAMMARS = {
    "en": (
        ("My mother", "The old baker", "A small puppy", "Bob", "Nobody", "The woman with "
         "the umbrella", "Our new teacher", "Her brother Peter", "The blue whale", "Maybe "
         "somebody", "The five young people", "A famous poet", "We", "You", "They"),
        ("put", "brought", "bought", "found", "moved", "should open", "would show", "left",
         "pushed", "could draw", "might follow", "watched", "chose", "will paint"),
        ("the purple box", "a bowl of warm soup", "seven books", "that broken map",
         "both maps of the valley", "an apple pie", "the moon boat", "a very good plan",
         "the whole thing", "two yellow shoes", "my favourite music", "the green teapot"),
        ("before the film began", "above the open door", "for them", "in the middle of "
         "May", "without a sound", "by the river", "near the top of the mountain",
         "because the weather was awful", "while we ate breakfast", "every morning",
         "from the village", "with both thumbs"),
    ),
    "de": (
        ("Meine Mutter", "Der alte Müller", "Ein kleiner Hund", "Niemand", "Die junge Frau",
         "Unser Lehrer", "Peter", "Das blaue Boot"),
        ("findet", "malt", "öffnet", "bewegt", "kauft", "hört", "vermisst", "braucht"),
        ("ein schönes Buch", "die warme Suppe", "den grünen Apfel", "fünf Bilder",
         "das große Haus", "zwei Paar Schuhe", "die ganze Übung"),
        ("am frühen Morgen", "auf dem Berg", "mitten im Mai", "ohne Mühe", "bevor der Film "
         "beginnt", "über der offenen Tür", "für alle Leute"),
    ),
    "es": (
        ("Mi madre", "El viejo panadero", "Un perro", "Nadie", "La mujer joven"),
        ("busca", "mueve", "pinta", "abre", "compra"),
        ("una sopa", "el libro nuevo", "un mapa", "la puerta", "cinco bombones"),
        ("por la mañana", "en mayo", "sobre la mesa", "para todos", "sin problema"),
    ),
    "fr": (
        ("Ma mère", "Le vieux boulanger", "Un petit chien", "Personne", "La jeune femme"),
        ("ouvre", "montre", "porte", "bouge", "trouve"),
        ("une bonne soupe", "le beau livre", "un plan", "la porte bleue", "deux pommes"),
        ("au mois de mai", "pour nous", "avant le film", "sur la table", "sans bruit"),
    ),
    "it": (
        ("Mia madre", "Il vecchio fornaio", "Un cane", "Nessuno", "La giovane donna"),
        ("apre", "compra", "muove", "porta", "prende"),
        ("una zuppa", "il libro", "una mappa", "la porta", "cinque bambole"),
        ("ogni mattina", "a maggio", "sopra il ponte", "per tutti", "senza problemi"),
    ),
    "ru": (
        ("Моя мама", "Старый пекарь", "Маленький пёс", "Никто не", "Молодая женщина"),
        ("открывает", "покупает", "рисует", "находит", "помнит"),
        ("новую книгу", "большой дом", "карту", "тёплый суп", "пять яблок"),
        ("утром", "в мае", "под мостом", "для папы", "без шума"),
    ),
    "cs": (
        ("Moje máma", "Starý pekař", "Malý pes", "Nikdo", "Mladá žena"),
        ("kupuje", "maluje", "hledá", "vidí", "nemá"),
        ("novou knihu", "velký dům", "mapu", "teplou polévku", "pět jablek"),
        ("ráno", "v máji", "pod mostem", "pro tatínka", "bez povyku"),
    ),
    "fi": (
        ("Minun äitini", "Vanha leipuri", "Pieni koira", "Naapurin poika", "Nuori nainen"),
        ("ostaa", "maalaa", "avaa", "löytää", "muistaa"),
        ("uuden kirjan", "ison talon", "vanhan kartan", "lämpimän keiton", "viisi omenaa"),
        ("aamulla", "toukokuussa", "sillan alla", "meidän kanssa", "yöllä pöydän ääressä"),
    ),
}  # fmt: skip


def _transcripts(language):
    """Returns {path without extension: text} of one language; empty if not installed."""
    name = f"asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    try:
        with gzip.open(os.path.join(_TRANSCRIPTS.value, name)) as file:
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return {}
    rows = [line.split(":", 1) for line in lines if re.match(r"[\w/-]+:", line)]
    return {key.strip(): text.strip() for key, text in rows}


def _testdata():
    """Returns {speaker: [(path, text)]} of pocketsphinx-testdata."""
    speakers = {}
    for speaker, folder, name in (
        ("librivox_austen", "librivox", "transcription"),
        ("testdata_cards", "cards", "cards.transcription"),
    ):
        path = os.path.join(_TESTDATA.value, folder)
        if not os.path.exists(os.path.join(path, name)):
            continue
        with open(os.path.join(path, name)) as file:
            rows = re.findall(r"<s>\s*(.*?)\s*</s>\s*\((\S+)\)", file.read())
        speakers[speaker] = [(f"{path}/{key}.wav", text) for text, key in rows]
    return speakers


def _align_recordings(rows, voice, seed):
    """Aligns recordings of one speaker; returns utterances and why others were left."""
    del seed
    aligner = alignment.Aligner()
    kept, left = [], {"length": 0, "no path": 0, "disagreement": 0, "implausible": 0}
    for path, text in rows:
        audio = speech.read_audio(path)
        if not _MIN_S <= len(audio) / speech.SAMPLE_RATE <= _MAX_S:
            left["length"] += 1
            continue
        try:
            synthetic, rendered, words = synthesis.espeak(text, voice)
            warped = alignment.dtw(audio, synthetic, rendered)
        except phones_lib.Unalignable:
            left["no path"] += 1
            continue
        phones = aligner.spelt(audio, words)
        if phones is None:
            left["no path"] += 1
        elif alignment.disagreement(phones, warped) > _MAX_DISAGREEMENT_S:
            left["disagreement"] += 1
        else:
            if voice.startswith("en"):
                phones = aligner.english(audio, text) or phones
            if alignment.plausible(audio, phones):
                kept.append((audio, phones))
            else:
                left["implausible"] += 1
    if sum(len(audio) for audio, _ in kept) >= _REFINED_S * speech.SAMPLE_RATE:
        refined = refinement.refine(kept)
        kept = [(a, phones) for a, phones in refined if alignment.plausible(a, phones)]
        left["implausible"] += len(refined) - len(kept)
    return kept, left


def _speak(sentences, voice, minutes, seed, synthesise):
    rng = np.random.default_rng([seed, *voice.encode()])
    kept, seconds = [], 0.0
    while seconds < minutes * 60:
        text = sentences[rng.integers(len(sentences))]
        try:
            audio, phones = synthesise(text, voice, rng)
        except phones_lib.Unalignable:
            continue
        if len(audio) / speech.SAMPLE_RATE > _MAX_S:
            continue
        gain = 0.6 * 10 ** (-rng.uniform(0, 12) / 20) / np.abs(audio).max()
        kept.append((audio * gain, phones))
        seconds += len(audio) / speech.SAMPLE_RATE
    return kept, {}


def _flite(text, voice, rng):
    base = {"slt": 170, "kal16": 105, "rms": 100, "awb": 115}[voice]
    pitch_hz = base * rng.uniform(0.88, 1.15)
    return synthesis.flite(text, voice, rng.uniform(0.85, 1.25), pitch_hz)


def _festival(text, voice, rng):
    return festival.speak(text, voice, rng.uniform(0.85, 1.2))


def _espeak(text, voice, rng):
    rate, pitch, span = rng.uniform(125, 200), rng.uniform(25, 75), rng.uniform(35, 80)
    audio, phones, _ = synthesis.espeak(text, voice, rate, pitch, span)
    return audio, phones


def _sentences(language, rng):
    """Returns the synthesisers' text: long transcripts and made-up sentences."""
    actors = fillets.lines(_GAME.value, language).values()
    said = [*_transcripts(language).values(), *(text for rows in actors for _, text in rows)]
    texts = [
        text.replace("#", " ").replace("*", " ")
        for text in said
        if len(text.split()) >= 4 and "[" not in text
    ]
    grammar = _GRAMMARS[language]
    made = [" ".join(words) + "." for words in itertools.product(*grammar)]
    rng.shuffle(made)
    return texts + made[: max(600, 2 * len(texts))]


def _jobs():
    """Returns {speaker: (function without arguments, facts for the index)}."""
    jobs = _synthetic_jobs()  # First: quick, and exact.
    for speaker, (folder, voice, licence) in _RECORDED.items():
        language = speaker.split("_")[1]
        root = os.path.join(_SOUNDS.value, folder)
        texts = _transcripts(language)
        found = {
            os.path.relpath(path, root).removesuffix(".g722"): path
            for path in sorted(glob.glob(f"{root}/**/*.g722", recursive=True))
        }
        rows = [(p, texts[k]) for k, p in found.items() if "[" not in texts.get(k, "[")]
        package = f"asterisk-core-sounds-{language}"
        if not rows:
            logging.warning("%s: skipped; install %s and %s-g722.", speaker, package, package)
            continue
        jobs[speaker] = (
            functools.partial(_align_recordings, rows, voice, 0),
            dict(
                language=language, source=f"{package}-g722", licence=licence,
                alignment="pocketsphinx, checked by DTW with espeak-ng, refined",
            ),
        )  # fmt: skip
    for language in fillets.LANGUAGES:
        actors = fillets.lines(_GAME.value, language)
        if not actors:
            package = f"fillets-ng-data-{language}"
            logging.warning("%s: skipped; install %s.", package, package)
        for actor, rows in actors.items():
            jobs[f"fillets_{language}_{actor}"] = (
                functools.partial(_align_recordings, rows, language, 0),
                dict(
                    language=language, source=f"fillets-ng-data-{language}",
                    licence=fillets.LICENCE,
                    alignment="pocketsphinx, checked by DTW with espeak-ng, refined",
                ),
            )  # fmt: skip
    for speaker, rows in _testdata().items():
        licence = "public domain (LibriVox)" if "librivox" in speaker else "BSD-2-Clause"
        jobs[speaker] = (
            functools.partial(_align_recordings, rows, "en-us", 0),
            dict(
                language="en", source="pocketsphinx-testdata", licence=licence,
                alignment="pocketsphinx, checked by DTW with espeak-ng",
            ),
        )  # fmt: skip
    if not _testdata():
        logging.warning("librivox: skipped; install pocketsphinx-testdata.")
    return jobs


def _synthetic_jobs():
    jobs, rng = {}, np.random.default_rng(_SEED.value)
    texts = {language: _sentences(language, rng) for language in _GRAMMARS}
    if not shutil.which("flite"):
        logging.warning("flite: skipped; install flite.")
    else:
        for voice in _FLITE_VOICES:
            name = f"flite_{voice}"
            train = [v for v in _FLITE_VOICES if speech.split_of(f"flite_{v}") == "train"]
            minutes = _MINUTES.value / len(train)
            minutes = minutes if voice in train else minutes / 2
            jobs[name] = (
                functools.partial(
                    _speak, texts["en"], voice, minutes, _SEED.value, _flite
                ),
                dict(
                    language="en", source="flite", licence="flite (BSD-like)",
                    alignment="exact",
                ),
            )  # fmt: skip
    for voice, (_, package) in festival.VOICES.items():
        if voice not in festival.installed():
            logging.warning("festival_%s: skipped; install festival and %s.", voice, package)
            continue
        language = voice[:2]
        jobs[f"festival_{voice}"] = (
            functools.partial(
                _speak, texts[language], voice, _MINUTES.value / _FESTIVAL_PART, _SEED.value,
                _festival,
            ),
            dict(
                language=language, source=package, licence=festival.LICENCES[voice],
                alignment="exact",
            ),
        )  # fmt: skip
    for voice in _ESPEAK_VOICES:
        language = voice[:2]
        jobs[f"espeak_{voice}"] = (
            functools.partial(
                _speak, texts[language], voice, _MINUTES.value / len(_ESPEAK_VOICES),
                _SEED.value, _espeak,
            ),
            dict(
                language=language, source="espeak-ng",
                licence="made with espeak-ng (GPL-3 program)", alignment="exact",
            ),
        )  # fmt: skip
    return jobs


def _missing():
    """Returns what every recording needs and is not installed."""
    needs = []
    if not importlib.util.find_spec("pocketsphinx"):
        needs.append("the package pocketsphinx (PyPI)")
    if not synthesis.espeak_available():
        needs.append("the library libespeak-ng.so.1 (Debian: libespeak-ng1)")
    return needs


def main():
    if missing := _missing():
        raise SystemExit(f"corpus: missing {' and '.join(missing)}.")
    done = speech.read_index(_OUT.value).keys() - speech.lost(_OUT.value)
    jobs = {name: job for name, job in _jobs().items() if name not in done}
    # A process for every voice: what espeak-ng says depends on what it has said before.
    with concurrent.futures.ProcessPoolExecutor(
        _WORKERS.value, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        futures = {pool.submit(work): name for name, (work, _) in jobs.items()}
        for future in tqdm.tqdm(
            concurrent.futures.as_completed(futures), total=len(futures), unit="voice"
        ):
            name = futures[future]
            if future.exception():
                pool.shutdown(cancel_futures=True)
            kept, left = future.result()
            if not kept:
                logging.warning("%s: nothing could be aligned (%s).", name, left)
                continue
            facts = jobs[name][1] | ({"rejected": left} if left else {})
            speech.save(_OUT.value, name, kept, **facts)
    index = speech.read_index(_OUT.value)
    if not index:
        raise SystemExit("corpus: no source is installed; see the warnings above.")
    for split in speech.SPLITS:
        minutes = sum(e["minutes"] for e in index.values() if e["split"] == split)
        print(f"{split}: {minutes:.1f} minutes")


if __name__ == "__main__":
    common.run("corpus", main)
