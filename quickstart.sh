#!/usr/bin/env bash
# From images to a table: real handwritten digits, long-tailed, by three methods.
set -euo pipefail

data=data/digits_lt
stamp=$(date +%m%d-%H%M%S)

echo "== 1. shards: 10 classes, from 142 training images down to 2"
if [ -e $data/manifest.json ]; then
  bcl-ray shards show $data
else
  bcl-ray shard digits $data --profile exponential --imbalance-factor 50
fi

echo; echo "== 2. plain cross-entropy"
bcl-ray train digits_lt loss.kind=ce tracking.run=cross-entropy-"$stamp"

echo; echo "== 3. logit-adjusted cross-entropy: BCL without its contrastive branch"
bcl-ray train digits_lt loss.kind=logit_adjusted tracking.run=logit-adjusted-"$stamp"

echo; echo "== 4. balanced contrastive learning"
bcl-ray train digits_lt tracking.run=bcl-"$stamp"

echo; echo "== 5. all three, evaluated again from their checkpoints"
bcl-ray evaluate cross-entropy-"$stamp" logit-adjusted-"$stamp" bcl-"$stamp"

echo
echo "the commands below need:        . .venv/bin/activate"
echo "curves, parameters and models:  mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
echo "your own images:                bcl-ray shard folder data/mine --from PATH"
