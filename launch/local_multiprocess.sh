#!/usr/bin/env bash
# Trains with several processes on this machine, as a pod does on many.
#
#     launch/local_multiprocess.sh --processes=2 --devices=4 -- \
#         python launch/train.py --config=configs/baseline.py:lightgcn \
#         --config.data.path=DIR --workdir=DIR
#
# Every process is given the command after `--` with the flags that tell it
# which one it is. Without accelerators each has `--devices` virtual ones. If
# one ends with an error the others are told to stop, and killed if they have
# not within `--grace` seconds (30): without the one they may wait for it in
# vain. SIGTERM and SIGINT are handed on to all of them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

processes=2 devices=4 grace=30 port='' dry_run=''
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) refuse "unknown flag $1 (--help tells what there is)" ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ && $devices =~ ^[1-9][0-9]*$ &&
  $grace =~ ^[0-9]+$ && $# -gt 0 ]] ||
  refuse "expected --processes=N --devices=N --grace=SECONDS -- COMMAND"
if [[ -z $port ]]; then
  # A port that is free now; processes have to agree on it before they meet.
  port=$(python3 -c 'import socket
with socket.socket() as s:
    s.bind(("localhost", 0))
    print(s.getsockname()[1])')
fi

export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
children=() number=()
stop() {
  for child in "${children[@]}"; do
    kill "-$1" "$child" 2>/dev/null || true
  done
}
trap 'stop TERM' TERM INT
for ((i = 0; i < processes; i++)); do
  command=("$@" "--coordinator=localhost:$port" "--processes=$processes" "--process=$i")
  if [[ $dry_run ]]; then
    quoted env "XLA_FLAGS=$XLA_FLAGS" "${command[@]}"
    continue
  fi
  "${command[@]}" &
  children+=("$!") number[$!]=$i
done
# Looked at again and again: `wait -n` forgets one of two that end at once.
status=0 deadline=
while ((${#children[@]})); do
  sleep 0.2 &
  # A signal interrupts it.
  wait "$!" || true
  failed='' rest=()
  for child in "${children[@]}"; do
    one=0
    if kill -0 "$child" 2>/dev/null; then
      rest+=("$child")
    else
      wait "$child" || one=$?
    fi
    if ((one && !status)); then
      status=$one failed=1
      said="ended with status $one"
      ((one < 129)) || said="was ended by signal $((one - 128))"
      echo "${0##*/}: process ${number[$child]} $said; the others are told" \
        "to stop, and the same command goes on" >&2
    fi
  done
  children=("${rest[@]+"${rest[@]}"}")
  if [[ $failed ]]; then
    stop TERM
    deadline=$((SECONDS + grace))
  elif [[ $deadline ]] && ((SECONDS > deadline)); then
    stop KILL
  fi
done
exit "$status"
