#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice (TPU VM), through gcloud.
#
#     launch/tpu_vm.sh create --name=NAME --zone=ZONE --type=TYPE --version=IMAGE [--spot]
#     launch/tpu_vm.sh setup  --name=NAME --zone=ZONE
#     launch/tpu_vm.sh run    --name=NAME --zone=ZONE -- \
#         --config=configs/baseline.py:lightgcn \
#         --config.data.path=gs://BUCKET/data --workdir=gs://BUCKET/run
#     launch/tpu_vm.sh status | stop | delete --name=NAME --zone=ZONE
#
# Each may be given again: create leaves what is there and makes anew what was
# pre-empted, setup installs what is missing, run shows a run that goes on.
#
# all:     --project=PROJECT; --ssh=FLAG for gcloud's ssh and scp, any number
#          (--ssh=--internal-ip); --dry-run prints what it would run
# create:  a queued resource of that name; waits until it is there. --spot: one
#          that may be pre-empted
# setup:   copies the code of --commit=COMMIT (HEAD) or --tarball=FILE, and
#          installs requirements.txt, -gcs.txt and -tpu.txt with
#          --python=COMMAND (python3; 3.11 or newer), or takes --venv=DIR of
#          the image; --before=COMMAND runs on each worker first
# run:     what follows -- goes to launch/train.py; buckets (gs://...) that it
#          names beside --workdir= are mounted by gcsfuse. --logs=DIR: a file
#          for each worker, here, instead of the terminal. Ends as the
#          trainers do
# stop:    SIGTERM to the trainers: they leave a checkpoint
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action=${1:---help}
shift || true
name='' zone='' type='' version='' commit=HEAD tarball='' before='' logs=''
python='' venv='' dry_run='' where=() spot=() ssh=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} && where+=("$1") ;;
    --project=*) where+=("$1") ;;
    --ssh=*) ssh+=("${1#*=}") ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --commit=*) commit=${1#*=} ;;
    --tarball=*) tarball=${1#*=} ;;
    --python=*) python=$1 ;;
    --venv=*) venv=$1 ;;
    --before=*) before=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help | -h) action=--help ;;
    --) shift && break ;;
    *) refuse "unknown flag $1 (--help tells what there is)" ;;
  esac
  shift
done
case $action in
  --help | -h) usage && exit 0 ;;
  create | setup | run | status | stop | delete) ;;
  *) refuse "unknown action $action (--help tells what there is)" ;;
esac
[[ $name ]] || refuse "--name is missing: of the TPU"
[[ $zone ]] || refuse "--zone is missing: where the TPU is"

queued=(gcloud compute tpus queued-resources)
# Has every worker do something: on_workers COMMAND [GCLOUD FLAG...]
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
    "${ssh[@]}" "--command=$1" "${@:2}"
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
worker="bash neggen/current/launch/tpu_worker.sh"

remove() {
  run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet
}

request() {
  run "${queued[@]}" create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$version" "${spot[@]}"
}

# Prints the state of the queued resource; nothing if there is none.
state() {
  "${queued[@]}" describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

create() {
  [[ $type ]] || refuse "--type is missing: of the slice, v5litepod-16 say"
  [[ $version ]] || refuse "--version is missing: of the workers' image"
  if [[ $dry_run ]]; then
    quoted "${queued[@]}" describe "$name" "${where[@]}" \
      --format='value(state.state)'
    echo "# if that is SUSPENDED or FAILED:"
    remove
    echo "# if it is not there, or no longer; then again until it is ACTIVE:"
    request
    return
  fi
  local now before=
  now=$(state)
  case $now in
    SUSPENDING | SUSPENDED | FAILED) remove && now='' ;;
  esac
  [[ $now ]] || request
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      SUSPENDING | SUSPENDED | FAILED | "")
        echo "error: $name was not granted: ${now:-it is gone}" >&2
        exit 1
        ;;
    esac
    [[ $now == "$before" ]] || echo "$name: $now" >&2
    before=$now
    sleep 30
  done
}

setup() {
  local id package temporary='' flags=()
  if [[ $tarball ]]; then
    [[ -f $tarball ]] || refuse "there is no --tarball=$tarball"
    id=$(sha256sum <"$tarball") id=${id:0:12} package=$tarball
  else
    id=$(git -C "$root" rev-parse --verify --quiet --short=12 "$commit^{commit}") ||
      refuse "there is no --commit=$commit"
    package=neggen-$id.tar.gz
    if [[ ! $dry_run ]]; then
      temporary=$(mktemp -d)
      package=$temporary/$package
    fi
    run git -C "$root" archive --output="$package" "$commit"
  fi
  local there=neggen-$id.tar.gz code=neggen/$id unpack
  run gcloud compute tpus tpu-vm scp "$package" "$name:$there" "${where[@]}" \
    --worker=all "${ssh[@]}"
  [[ ! $temporary ]] || rm -r "$temporary"
  unpack="rm -rf $code.new && mkdir -p $code.new && tar -xzf $there -C $code.new"
  unpack+=" && mv $code.new $code"
  [[ ! $python ]] || flags+=("$python")
  [[ ! $venv ]] || flags+=("$venv")
  [[ ! $before ]] || before="$(quoted bash -c "$before") && "
  on_workers "$before{ test -d $code || { $unpack; }; } && $(
    quoted bash "$code/launch/tpu_worker.sh" setup "${flags[@]}"
  )"
}

start() {
  local flags=()
  [[ $(flag_value workdir "$@") ]] ||
    refuse "--workdir is missing after --: where the run lives"
  if [[ $logs ]]; then
    run mkdir -p "$logs"
    flags=("--output-directory=$logs")
  fi
  on_workers "$worker $(quoted run "$@")" "${flags[@]}"
}

case $action in
  create) create ;;
  delete) remove ;;
  setup) setup ;;
  run) start "$@" ;;
  status | stop) on_workers "$worker $action" ;;
esac
