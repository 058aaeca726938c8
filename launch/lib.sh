# shellcheck shell=bash
# What the scripts beside this file share. It is sourced, and does nothing.

# Prints the head of the script that runs.
usage() {
  sed -n '2,/^set/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
}

# Refuses what a person can put right, as the Python commands do.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# Prints a command as it could be typed.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_=:,./@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  echo "${line% }"
}

# Runs a command; prints it instead if `dry_run` is set.
run() {
  if [[ ${dry_run:-} ]]; then quoted "$@"; else "$@"; fi
}

# Prints the value of a flag among arguments: flag_value NAME ARGUMENT...
flag_value() {
  local name=$1 value=
  shift
  while (($#)); do
    case $1 in
      "--$name="*) value=${1#*=} ;;
      "--$name") value=${2:-} ;;
    esac
    shift
  done
  echo "$value"
}

# Whether a workdir holds the results of a finished run.
finished() {
  case $1 in
    gs://*) gcloud storage ls "$1/results.json" >/dev/null 2>&1 ;;
    *) [[ -f $1/results.json ]] ;;
  esac
}

# Prints the steps of the checkpoints of a workdir, in one line.
saved_steps() {
  local path steps=()
  while read -r path; do
    path=${path%/commit_success.txt} path=${path%/} path=${path##*/}
    # Other names are checkpoints that are still being written.
    [[ ! $path =~ ^[0-9]+$ ]] || steps+=("$path")
  done < <(
    case $1 in
      # There is a directory before all is in it, and then this file.
      gs://*) gcloud storage ls "$1/checkpoints/*/commit_success.txt" 2>/dev/null ;;
      *) printf '%s\n' "$1"/checkpoints/*/ ;;
    esac
  )
  echo "${steps[*]}"
}

# Prints the largest of some steps; -1 without any.
newest_step() {
  local step newest=-1
  for step; do
    ((10#$step <= newest)) || newest=$((10#$step))
  done
  echo "$newest"
}

# Whether there are steps that were not there before; they may be lower ones,
# if a damaged checkpoint was set aside: got_on "STEPS BEFORE" "STEPS AFTER"
got_on() {
  local step
  for step in $2; do
    [[ " $1 " == *" $step "* ]] || return 0
  done
  return 1
}

# Prints an argument with its gs://BUCKET/ replaced by ROOT/BUCKET/, where the
# bucket is mounted: mounted ROOT ARGUMENT
mounted() {
  echo "${2//gs:\/\//"$1/"}"
}

# Prints the buckets that arguments name, each once.
buckets() {
  printf '%s\n' "$@" | sed -nE 's#.*gs://([^/]+).*#\1#p' | sort -u
}
