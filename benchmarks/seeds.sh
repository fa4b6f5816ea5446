#!/usr/bin/env bash
# How much the demo's figures owe to the seed: the chain up to the report under other seeds, control left out.
#     benchmarks/seeds.sh 1 2 3
# Each seed is a run of its own (data/demo-seed-N), about five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
for seed in "$@"; do
  config=$(mktemp --suffix .yaml)
  printf 'run: demo-seed-%s\nseed: %s\nretrieval: {random_control: false}\n' "$seed" "$seed" > "$config"
  .venv/bin/snakemake --profile profiles/local report --quiet all --configfile "$config"
  .venv/bin/earmark figures "data/demo-seed-$seed"
  rm "$config"
done
