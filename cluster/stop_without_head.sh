#!/usr/bin/env bash
# Stops the Ray of this machine once its head has not answered for half a minute: stop_without_head.sh ADDRESS PORT
#
# `ray down` of cluster/onprem.yaml stops the head alone. A worker's Ray then takes a minute or two to give up, and
# leaves its log monitor behind for good. Started again, perhaps for another head, this takes the place of the former.
set -u

number=~/.ray/stop_without_head.pid
former=$(cat "$number" 2>/dev/null || true)
if [ -n "$former" ] && grep -qs stop_without_head "/proc/$former/cmdline"; then kill "$former"; fi
echo "$$" >"$number"

missed=0
while [ "$missed" -lt 3 ]; do
    sleep 10
    if timeout 5 bash -c "</dev/tcp/$1/$2" 2>/dev/null; then missed=0; else missed=$((missed + 1)); fi
done
exec ray stop --force
