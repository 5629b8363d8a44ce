#!/usr/bin/env bash
# From a folder of videos to a talking video, in under an hour of two processors.
#
#   experiments/from_videos/run.sh runs/from_videos            # sixty drawn videos of one character
#   VIDEOS=FOLDER experiments/from_videos/run.sh runs/mine     # your own
#
# The transformer learns from nothing but these videos; autoencoder and speech encoder are those
# that come with preset nano. Stopped or killed, the same command goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -ne 1 ]; then
  echo "usage: experiments/from_videos/run.sh FOLDER" >&2
  exit 2
fi
work=$1
python=${PYTHON:-.venv/bin/python}
: "${COUNT:=60}"           # Videos to draw, of 6 s.
: "${CHARACTER:=11}"       # Which character.
: "${STYLE:=clay}"         # One of launch/character.py's.
: "${CORPUS:=}"            # Speech corpus of the drawn videos; the package's recordings without.
: "${TEACHER_STEPS:=1500}"
: "${STUDENT_STEPS:=300}"
: "${DISTILL_STEPS:=100}"
: "${TRAJECTORIES:=160}"

mkdir -p "$work"
say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" | tee -a "$work/log.txt"; }
weights=tm_jax/assets/nano

if [ -z "${VIDEOS:-}" ]; then
  VIDEOS=$work/videos
  say "draws $COUNT videos"
  mkdir -p "$VIDEOS"
  for ((i = 0; i < COUNT; i++)); do
    file=$VIDEOS/$(printf '%03d' "$i").mp4
    [ -e "$file" ] && continue
    kind=talking
    ((i % 4 != 3)) || kind=conversing
    "$python" launch/character.py --seed="$CHARACTER" --style="$STYLE" --words="$i" --partner \
      --kind="$kind" --video="$work/part.mp4" ${CORPUS:+--corpus="$CORPUS"} >/dev/null
    mv "$work/part.mp4" "$file"
  done
fi
say "examples"
"$python" launch/prepare.py --preset=nano --videos="$VIDEOS" --out="$work/examples" --face=none \
  --clip_seconds=5.76 --voice_activity=loudness --partner=right
for stage in teacher student distill; do
  say "$stage"
  steps=${stage^^}_STEPS
  more=(--set optimizer.muon=True)
  [ "$stage" = teacher ] || more=(--set "trajectories=$TRAJECTORIES")
  "$python" launch/train.py --preset=nano --stage="$stage" --data="$work/examples" \
    --workdir="$work" --steps="${!steps}" --export="$work/weights" \
    --set data.weights="$weights" "${more[@]}"
done
cp "$weights/vae.safetensors" "$weights/audio.safetensors" "$work/weights/"
say "a video with a voice that was not among them"
"$python" launch/character.py --seed="$CHARACTER" --style="$STYLE" --out="$work/picture.png"
"$python" launch/generate.py --preset=nano --weights="$work/weights" --image="$work/picture.png" \
  --audio="${AUDIO:-tm_jax/assets/voices/dashwood_amiable.flac}" --out="$work/talking.mp4"
say "finished"
"$python" -m experiments.from_videos.report --work="$work"
