#!/usr/bin/env bash
# Keeps a run going: the same command on the same workdir, until it is done.
#
#     launch/babysit.sh --workdir=DIR -- \
#         python launch/train.py --config=configs/baseline.py:lightgcn \
#         --config.data.path=DIR --workdir=DIR
#
# A run is done when its command ends with status 0 and results.json is in the
# workdir; a trainer that was told to stop ends with 0 as well, but without
# it. Then, and only then, this script ends with 0. However else the command
# ends, it is given again.
#
#   --workdir=DIR        of the run; gs://BUCKET/DIR is asked through gcloud
#   --before=COMMAND     a line of shell that begins each try: it creates what
#                        was pre-empted, say
#   --tries=N            gives up after N tries in a row that leave no new
#                        checkpoint (5), with the status of the last one
#   --wait=SECONDS       before the next try (10); each try in a row without a
#                        new checkpoint doubles it,
#   --longest-wait=SECONDS  up to this (600)
#   --once               one try: for machines that give the next themselves
#   --dry-run            prints what it would run
#
# SIGTERM and SIGINT are handed on as SIGTERM; once the command has ended, so
# does this script, with status 143.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

workdir='' before='' tries=5 pause=10 longest=600 once='' dry_run=''
while (($#)); do
  case $1 in
    --workdir=*) workdir=${1#*=} ;;
    --before=*) before=${1#*=} ;;
    --tries=*) tries=${1#*=} ;;
    --wait=*) pause=${1#*=} ;;
    --longest-wait=*) longest=${1#*=} ;;
    --once) once=1 ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) refuse "unknown flag $1 (--help tells what there is)" ;;
  esac
  shift
done
[[ $workdir ]] || refuse "--workdir is missing: where the run lives"
(($#)) || refuse "the command is missing: --workdir=DIR -- COMMAND"
[[ $tries =~ ^[1-9][0-9]*$ && $pause =~ ^[0-9]+$ && $longest =~ ^[0-9]+$ ]] ||
  refuse "--tries, --wait and --longest-wait are whole numbers"
if [[ $dry_run ]]; then
  [[ ! $before ]] || quoted bash -c "$before"
  quoted "$@"
  echo "# again until $workdir/results.json is there"
  exit 0
fi

say() {
  echo "babysit: $*" >&2
}
checkpoint() {
  if (($1 < 0)); then echo "no checkpoint"; else echo "checkpoint $1"; fi
}

child='' stopped='' status=0
stop() {
  stopped=1
  [[ ! $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT

# Runs a command to its end, whatever signals come; `status` is how it ended.
attempt() {
  local ended=
  "$@" &
  child=$!
  # The signal may have come before there was whom to tell.
  [[ ! $stopped ]] || stop
  while [[ ! ${ended:-} ]]; do
    status=0
    # A signal interrupts it, and leaves `ended` unset.
    wait -n -p ended "$child" || status=$?
  done
  child=
}

saved=$(saved_steps "$workdir") failures=0 first=$pause
while :; do
  status=0
  [[ ! $before ]] || attempt bash -c "$before"
  if ((status == 0)) && [[ ! $stopped ]]; then
    attempt "$@"
    if ((status == 0)) && finished "$workdir"; then
      say "done: $workdir/results.json"
      exit 0
    fi
  fi
  before_it=$saved saved=$(saved_steps "$workdir")
  # shellcheck disable=SC2086  # several words
  step=$(newest_step $saved)
  if [[ $stopped ]]; then
    say "told to stop; there is $(checkpoint "$step"), and the same command goes on"
    exit 143
  fi
  if got_on "$before_it" "$saved"; then
    failures=0 pause=$first
  else
    failures=$((failures + 1))
  fi
  say "ended with status $status and without results.json;" \
    "there is $(checkpoint "$step")"
  # What is not done has not ended well.
  ((status)) || status=1
  [[ ! $once ]] || exit "$status"
  if ((failures >= tries)); then
    say "error: gave up: $failures tries in a row left no new checkpoint in" \
      "$workdir ($(checkpoint "$step")); the last one ended with status $status"
    exit "$status"
  fi
  say "trying again in $pause s"
  attempt sleep "$pause"
  if [[ $stopped ]]; then
    say "told to stop; the same command goes on"
    exit 143
  fi
  pause=$((failures ? pause * 2 : first))
  pause=$((pause < longest ? pause : longest))
done
