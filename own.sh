#!/usr/bin/env bash
# From a folder of photographs to a model that labels new ones, fine-tuned from pretrained weights.
set -euo pipefail

if [ ! -d "${IMAGES:-}" ]; then
  cat >&2 <<'END'
make own IMAGES=FOLDER [NEW=FOLDER] [WEIGHTS=FILE] [OPTIONS="section.field=value ..."]

IMAGES   FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg
NEW      images to label; those of FOLDER/test if it is not given
WEIGHTS  pretrained weights of the backbone, a file; without one, timm downloads them
OPTIONS  changes to the recipe `finetune`, such as views.image_size=128 train.epochs=10
END
  exit 2
fi
stamp=$(date +%m%d-%H%M%S)
data=data/own-$stamp run=own-$stamp labels=labels/own-$stamp
read -r -a options <<< "${OPTIONS:-}"
[ -z "${WEIGHTS:-}" ] || options+=("model.weights=$WEIGHTS")

echo "== 1. shards: every image is checked"
bcl-ray shard folder "$data" --from "$IMAGES"

echo; echo "== 2. fine-tuning"
bcl-ray train finetune data.path="$data" tracking.run="$run" "${options[@]}"

echo; echo "== 3. labels, with calibrated probabilities"
bcl-ray predict "$run" "${NEW:-$IMAGES/test}" "$labels" --csv

echo
echo "the first labels:"
head -n 6 "$labels"/csv/*.csv
echo
echo "accuracies by class, curves, mistakes:  runs/$run/report.html"
echo "the commands need:                      . .venv/bin/activate"
