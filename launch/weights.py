"""The places of weights that flags name, on this disk or on the Hugging Face Hub."""

import logging
import sys

from absl import flags

from tm_jax.checkpoints import hub

_OFFLINE = flags.DEFINE_bool(
    "offline", False, "Take hf: weights from the cache alone, as with HF_HUB_OFFLINE=1."
)


def fetch(text: str, places: tuple[str, ...] | None) -> hub.Fetched:
    """What is on the Hub, see `hub.fetch`; says on stderr of which commit it is."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Not every request.
    found = hub.fetch(text, offline=_OFFLINE.value, places=places)
    print(f"{text} is {found.origin}", file=sys.stderr, flush=True)
    return found


def local(text: str | None) -> str | None:
    """The local place of weights; None and what is local already stay as they are."""
    return fetch(text, None).path if hub.is_spec(text) else text
