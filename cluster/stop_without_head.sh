#!/usr/bin/env bash
# Stops the Ray of this machine once its head has not answered for half a minute: stop_without_head.sh ADDRESS PORT
#
# `ray down` of cluster/onprem.yaml stops the head alone. A worker's Ray then takes a minute or two to give up, and
# leaves its log monitor behind for good.
set -u

missed=0
while [ "$missed" -lt 3 ]; do
    sleep 10
    if timeout 5 bash -c "</dev/tcp/$1/$2" 2>/dev/null; then missed=0; else missed=$((missed + 1)); fi
done
exec ray stop --force
