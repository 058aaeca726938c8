#!/usr/bin/env bash
# Trains on a multi-host TPU slice of GKE, as a JobSet (launch/gke.yaml).
#
#     launch/gke.sh run --name=NAME --image=IMAGE \
#         --accelerator=tpu-v5-lite-podslice --topology=4x4 -- \
#         --config=configs/baseline.py:lightgcn \
#         --config.data.path=gs://BUCKET/data --workdir=gs://BUCKET/run
#     launch/gke.sh status | logs | stop --name=NAME
#
# It wants kubectl with a cluster that has a node pool of such a slice, the
# JobSet controller and the Cloud Storage FUSE driver, and an image whose
# working directory is this repository, with its requirements installed
# (launch/README.md). What follows -- goes to launch/train.py; gs://BUCKET/ is
# mounted, and there may be one.
#
#   --accelerator=, --topology=  those of the node pool's labels
#   --chips=N             chips of one host (4)
#   --service-account=S   that may write to the bucket (default)
#   --spot                a node pool that may be pre-empted
#   --restarts=N          gives up after N restarts (20)
#   --python=COMMAND      of the image (python)
#   --context=, --namespace=  for kubectl
#   --dry-run             prints the manifest and what it would run
#
# A pod that was told to stop leaves a checkpoint and fails, so that the
# JobSet starts all pods anew with the same command. `stop` deletes the JobSet;
# `run` goes on from its workdir.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action=${1:---help}
shift || true
name='' image='' accelerator='' topology='' chips=4 account=default spot=''
restarts=20 python=python dry_run='' kubectl=(kubectl)
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --service-account=*) account=${1#*=} ;;
    --spot) spot='cloud.google.com/gke-spot: "true"' ;;
    --restarts=*) restarts=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --context=* | --namespace=*) kubectl+=("$1") ;;
    --dry-run) dry_run=1 ;;
    --help | -h) action=--help ;;
    --) shift && break ;;
    *) refuse "unknown flag $1 (--help tells what there is)" ;;
  esac
  shift
done
case $action in
  --help | -h) usage && exit 0 ;;
  run | status | logs | stop) ;;
  *) refuse "unknown action $action (--help tells what there is)" ;;
esac
[[ $name ]] || refuse "--name is missing: of the JobSet"
selector=jobset.sigs.k8s.io/jobset-name=$name

# Prints arguments as a list of YAML.
listed() {
  local argument line=''
  for argument; do
    argument=${argument//\\/\\\\}
    argument=${argument//\"/\\\"}
    line+=", \"$argument\""
  done
  echo "[${line#, }]"
}

# Prints the manifest of a run: manifest ARGUMENT...
manifest() {
  local text hosts=1 size bucket workdir arguments=() key
  text=$(<"$(dirname "${BASH_SOURCE[0]}")/gke.yaml")
  for size in ${topology//x/ }; do
    hosts=$((hosts * size))
  done
  ((hosts % chips == 0)) ||
    refuse "a topology of $topology is no whole number of hosts of $chips chips"
  bucket=$(buckets "$@")
  [[ $bucket ]] || refuse "--workdir is not on gs://: pods forget their disks"
  [[ $bucket != *$'\n'* ]] || refuse "one bucket is mounted, not" "${bucket//$'\n'/ and }"
  for argument; do
    [[ $argument != *$'\n'* ]] || refuse "an argument has several lines"
    arguments+=("$(mounted /gs "$argument")")
  done
  workdir=$(flag_value workdir "${arguments[@]}")
  arguments=(
    --once "--workdir=$workdir" -- "$python" launch/train.py
    --coordinator=auto "${arguments[@]}"
  )
  local -A filled=(
    [NAME]=$name [IMAGE]=$image [ACCELERATOR]=$accelerator [SPOT]=$spot
    [TOPOLOGY]=$topology [CHIPS]=$chips [HOSTS]=$((hosts / chips))
    [RESTARTS]=$restarts [SERVICE_ACCOUNT]=$account [BUCKET]=$bucket
    [ARGUMENTS]=$(listed "${arguments[@]}")
  )
  for key in "${!filled[@]}"; do
    text=${text//"{{$key}}"/"${filled[$key]}"}
  done
  echo "$text"
}

start() {
  local flag text
  for flag in image accelerator topology; do
    [[ ${!flag} ]] || refuse "--$flag is missing (--help tells what it is)"
  done
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    refuse "--topology=$topology is not like 4x4"
  [[ $chips =~ ^[1-9][0-9]*$ && $restarts =~ ^[0-9]+$ ]] ||
    refuse "--chips and --restarts are whole numbers"
  [[ $(flag_value workdir "$@") ]] ||
    refuse "--workdir is missing after --: where the run lives"
  text=$(manifest "$@")
  run "${kubectl[@]}" apply --filename=- <<<"$text"
  [[ ! $dry_run ]] || printf '%s\n' "# with this on its standard input:" "$text"
}

case $action in
  run) start "$@" ;;
  status)
    run "${kubectl[@]}" get jobset "$name"
    run "${kubectl[@]}" get pods --selector="$selector"
    ;;
  logs)
    run "${kubectl[@]}" logs --selector="$selector" --container=train \
      --prefix --follow --max-log-requests=1000
    ;;
  stop) run "${kubectl[@]}" delete jobset "$name" ;;
esac
