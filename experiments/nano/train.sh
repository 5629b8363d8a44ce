#!/usr/bin/env bash
# Trains preset nano from nothing: video and sound in, weights that stream out.
#
#   experiments/nano/train.sh runs/nano
#
# Needs the extra `corpus` and the Debian packages of docs/data.md#speech-corpus (or a finished corpus:
# CORPUS=FOLDER), the extra `recogniser` (or RECOGNISER=0), and for 3-D people the extra `people`.
# Stopped or killed, the same command goes on where it was. Numbers are environment variables with
# the defaults below; SMOKE=1 runs every step for a moment, to see that all of it works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -ne 1 ]; then
  echo "usage: experiments/nano/train.sh FOLDER" >&2
  exit 2
fi
work=$1
python=${PYTHON:-.venv/bin/python}
if [ "${SMOKE:-0}" = 1 ]; then
  : "${CLIPS:=8}" "${PEOPLE_CLIPS:=0}" "${PEOPLE:=0}" "${VIDEOS:=6}" "${MINUTES:=0.5}" "${VAE_STEPS:=4}" "${WHOLE_STEPS:=2}"
  : "${RECOGNISER:=0}" "${SPEECH_STEPS:=2}" "${TEACHER_STEPS:=2}" "${STUDENT_STEPS:=2}" "${DISTILL_STEPS:=2}"
  few=(--set batch=2) HELD_OUT=1
  paths=(--set trajectories=4)
fi
: "${CLIPS:=2000}"         # Drawn clips of the video autoencoder, 9 frames each.
: "${PEOPLE_CLIPS:=300}"   # Clips of 3-D people (extra people); 0 without it.
: "${VIDEOS:=6300}"        # Videos with sound of the transformer; of 1500 it learned many by heart.
: "${PEOPLE:=0.06}"        # Share of them that shows 3-D people; 0 without.
: "${MINUTES:=24}"         # Synthetic speech of each synthesiser (launch/corpus.py).
: "${VAE_STEPS:=12000}"    # On crops of frames.
: "${WHOLE_STEPS:=1500}"   # More of them, on whole frames.
: "${SPEECH_STEPS:=5000}"
: "${RECOGNISER:=1}"       # Weight of a recogniser's features in the speech encoder's loss.
: "${TEACHER_STEPS:=12000}"
: "${STUDENT_STEPS:=600}"
: "${DISTILL_STEPS:=320}"

mkdir -p "$work"
say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
done_once() { [ -e "$work/done-$1" ]; }
mark() { touch "$work/done-$1"; }
train() { "$python" launch/train.py --preset=nano --workdir="$work" --export="$work/weights" "$@"; }

draw() {  # draw NAME ARGUMENTS: a store of clips, which appears when it is whole.
  local name=$1
  shift
  [ -d "$work/clips/$name" ] && return
  rm -rf "$work/clips.part"
  "$python" experiments/nano/draw_clips.py --out="$work/clips.part" "$@"
  mkdir -p "$work/clips"
  mv "$work/clips.part" "$work/clips/$name"
}

say "clips"
draw held_out --count=$((CLIPS < 48 ? CLIPS : 48)) --frames=12 --held_out
draw drawn --count="$CLIPS" --frames=8
[ "$PEOPLE_CLIPS" = 0 ] || draw people --count="$PEOPLE_CLIPS" --frames=8 --people

if [ -z "${CORPUS:-}" ]; then
  CORPUS=$work/corpus
  if ! done_once corpus; then
    say "speech"
    "$python" launch/corpus.py --out="$CORPUS" --workers=2 --minutes_synthetic="$MINUTES"
    mark corpus
  fi
fi

if ! done_once vae; then
  say "video autoencoder"
  train --stage=vae --data="$work/clips" --steps="$VAE_STEPS"
  # Whole frames at last, from what crops taught.
  train --stage=vae --name=vae-whole --data="$work/clips" --steps="$WHOLE_STEPS" \
    --start="$work/vae/vae.safetensors" --set side=None --set batch=2 \
    --set optimizer.learning_rate=5e-4 --set optimizer.decay_fraction=0.8
  mark vae
fi

if ! done_once speech; then
  say "speech encoder"
  train --stage=speech --corpus="$CORPUS" --steps="$SPEECH_STEPS" --set recogniser_weight="$RECOGNISER"
  mark speech
fi

say "examples"
"$python" launch/prepare.py --preset=nano --weights="$work/weights" --out="$work/examples" \
  --synthetic="$VIDEOS" --people="$PEOPLE" --drawn_seconds=4 --corpus="$CORPUS" --face=none \
  --clip_seconds=3.84 --voice_activity=loudness --partner=right

for stage in teacher student distill; do
  if ! done_once "$stage"; then
    say "$stage"
    steps=${stage^^}_STEPS
    more=(--set chunks=2 --set data.held_out="${HELD_OUT:-32}" "${few[@]+"${few[@]}"}")
    if [ "$stage" = teacher ]; then
      # By AdamW alone the lips hardly learn: docs/training.md.
      more+=(--set optimizer.muon=True --set optimizer.weight_decay=0.1 --set optimizer.ema_decay=0.995)
      more+=(--set optimizer.schedule=wsd --set optimizer.decay_fraction=0.3)
    else
      if [ "$stage" = distill ]; then
        more+=(--set score_guidance.audio=1.0)
      else
        more+=(--set optimizer.muon=True)
      fi
      more+=(--set sampling_temperature=0.8)
      more+=("${paths[@]+"${paths[@]}"}")
    fi
    train --stage="$stage" --data="$work/examples" --steps="${!steps}" \
      --set data.weights="$work/weights" "${more[@]}"
    mark "$stage"
  fi
done
say "finished: launch/generate.py --preset=nano --weights=$work/weights --image=... --audio=..."
