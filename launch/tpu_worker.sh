#!/usr/bin/env bash
# What launch/tpu_vm.sh has each worker of a TPU VM do; it runs there.
#
#     tpu_worker.sh setup [--python=COMMAND] [--venv=DIR]
#     tpu_worker.sh run ARGUMENTS-OF-TRAIN.PY
#     tpu_worker.sh stop | status
#
# Everything is beside the directory of the code: venv, current (the code that
# was set up last), logs, run (process, command and exit status), and the
# mounted buckets in gs. `run` starts the trainer so that it outlives the
# connection, and shows its log to the end; given again it shows that of the
# trainer that runs. `stop` sends SIGTERM, and SIGKILL after 120 s.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action=${1:---help}
shift || true
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
home=$(dirname "$code")
process='' grace=120

# Whether a trainer runs; `process` leads its group.
alive() {
  process=$(cat "$home/run/process" 2>/dev/null) &&
    # After a reboot the number may be another's.
    grep -qs "$home/run/status" "/proc/$process/cmdline"
}

set_up() {
  local python=python3 venv='' wanted
  for flag; do
    case $flag in
      --python=*) python=${flag#*=} ;;
      --venv=*) venv=${flag#*=} ;;
      *) refuse "unknown flag $flag" ;;
    esac
  done
  cd "$code"
  wanted=$(cat requirements.txt requirements-gcs.txt requirements-tpu.txt |
    sha256sum)
  if [[ $venv ]]; then
    [[ -x $venv/bin/python ]] || refuse "there is no environment in $venv"
    rm -rf "$home/venv"
    ln -s "$venv" "$home/venv"
  elif [[ $(cat "$home/venv/.ready" 2>/dev/null) != "$wanted" ]]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      refuse "$(uname -n): Python 3.11 or newer is needed; name it by --python"
    rm -rf "$home/venv"
    "$python" -m venv "$home/venv"
    "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --requirement requirements.txt --requirement requirements-gcs.txt \
      --requirement requirements-tpu.txt
    echo "$wanted" >"$home/venv/.ready"
  fi
  ln -sfn "$code" "$home/current"
  echo "$(uname -n): $(basename "$code") is set up"
}

# Mounts a bucket. Without caches of metadata, since what one worker writes
# others look for.
mount_bucket() {
  local at=$home/gs/$1
  mkdir -p "$at"
  mountpoint -q "$at" || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$1" "$at"
}

start() {
  local arguments=() bucket before='' log
  [[ -x $home/venv/bin/python ]] || refuse "$(uname -n): not set up"
  for argument; do
    # Runs the trainer writes and reads itself; data it maps into memory.
    case $before$argument in
      --workdir* | --config.train.start_from*) ;;
      *)
        for bucket in $(buckets "$argument"); do
          mount_bucket "$bucket"
        done
        argument=$(mounted "$home/gs" "$argument")
        ;;
    esac
    arguments+=("$argument") before=
    [[ $argument != --workdir ]] || before=$argument
  done
  mkdir -p "$home/logs" "$home/run"
  if alive; then
    [[ $(quoted "$@") == "$(cat "$home/run/command")" ]] ||
      refuse "$(uname -n): another run goes on here; stop it first"
    echo "$(uname -n): it runs already"
  else
    log=$home/logs/$(date -u +%Y%m%dT%H%M%SZ).log
    ln -sfn "$log" "$home/logs/latest"
    quoted "$@" >"$home/run/command"
    rm -f "$home/run/status"
    # Now, so that there is something to show at once.
    : >"$log"
    cd "$home/current"
    # A session of its own: it outlives the connection, and is stopped as one.
    # shellcheck disable=SC2016
    PYTHONPATH=$PWD setsid bash -c \
      'trap : TERM; code=0; "${@:2}" || code=$?; echo "$code" >"$1"' \
      trainer "$home/run/status" "$home/venv/bin/python" launch/train.py \
      --coordinator=auto "${arguments[@]}" >>"$log" 2>&1 </dev/null &
    process=$!
    echo "$process" >"$home/run/process"
  fi
  tail --lines=+1 --follow --pid="$process" "$home/logs/latest"
  exit "$(cat "$home/run/status" 2>/dev/null || echo 1)"
}

stop() {
  local waited
  alive || { echo "$(uname -n): nothing runs" && return; }
  kill -TERM -- "-$process"
  for ((waited = 0; waited < grace; waited++)); do
    sleep 1
    alive || { echo "$(uname -n): stopped" && return; }
  done
  kill -KILL -- "-$process"
  echo "$(uname -n): killed after $grace s" >&2
  return 1
}

status() {
  local said="never ran"
  if alive; then
    said="runs"
  elif [[ -f $home/run/command ]]; then
    said="ended with status $(cat "$home/run/status" 2>/dev/null || echo unknown)"
  fi
  echo "$(uname -n): $(basename "$code") $said"
  tail --lines=3 "$home/logs/latest" 2>/dev/null || true
}

case $action in
  setup) set_up "$@" ;;
  run) start "$@" ;;
  stop) stop ;;
  status) status ;;
  --help | -h) usage ;;
  *) refuse "unknown action $action" ;;
esac
