#!/usr/bin/env bash
# down.sh DIR: end the Slurm that up.sh made in DIR with all its jobs, and remove DIR. Once more does nothing.
set -euo pipefail
dir=$1
[ -f "$dir/holder" ] || exit 0
read -r holder started <"$dir/holder"

alive() { # the same process, and no zombie that nobody has buried yet
  local fields
  fields=$(cut -d' ' -f3,22 "/proc/$holder/stat" 2>/dev/null) && [ "${fields#* }" = "$started" ] && [ "${fields% *}" != Z ]
}

# With the first process of a process namespace the kernel ends all others: nothing is left to look for.
if alive; then
  first=$(cat "/proc/$holder/task/$holder/children")
  kill -KILL ${first:-"$holder"} 2>/dev/null || true
  for _ in $(seq 100); do
    alive || break
    sleep 0.1
  done
  ! alive || { echo "down.sh: process $holder of $dir does not end" >&2; exit 1; }
fi
rm -rf --one-file-system "$dir"
