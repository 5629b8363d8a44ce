# shellcheck shell=bash
# Finds Python and makes the virtual environment; demo.sh and test.sh source this file.
#
#   prepare_environment [extra ...]
#
# sets TM_JAX_PYTHON and PYTHONPATH. It installs once: a stamp in the environment says
# what it holds, and a second call only compares it.
#
#   TM_JAX_VENV    folder of the environment; .venv beside setup.py by default
#   TM_JAX_EXTRAS  more extras of setup.py, such as "cuda12" or "corpus,plots"

TM_JAX_ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

_fail() {
  printf 'tm_jax: %s\n' "$*" >&2
  exit 1
}

# Prints the first Python that is new enough and can make environments.
_find_python() {
  local name version found='' incomplete=''
  for name in python3.13 python3.12 python3.11 python3; do
    version="$("$name" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' \
      2>/dev/null </dev/null)" || continue
    if ! "$name" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null; then
      found="$name is $version"
    elif ! "$name" -I -c 'import ensurepip, venv' 2>/dev/null </dev/null; then
      incomplete="$version"
    else
      command -v "$name"
      return
    fi
  done
  if [[ -n $incomplete ]]; then
    _fail "Python $incomplete cannot make virtual environments; on Debian or Ubuntu:" \
      "apt-get install python3-venv python$incomplete-venv"
  fi
  _fail "Python 3.11 or newer is missing (${found:-no python3 on PATH});" \
    "on Debian or Ubuntu: apt-get install python3 python3-venv"
}

# Prints what must be installed: a hash of requirements.txt and the version of Python $1,
# then the requirements of the extras $2 of setup.py, one a line; what is installed without
# its dependencies stands behind "--no-deps ".
_wanted() {
  # shellcheck disable=SC2086  # One word for each extra.
  "$1" -I - "$TM_JAX_ROOT" $2 <<'PYTHON'
import ast
import hashlib
import pathlib
import sys

root, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
core = (root / "requirements.txt").read_bytes()
print(hashlib.sha256(sys.version.encode() + b"\0" + core).hexdigest())
if names:
    body = ast.parse((root / "setup.py").read_text(encoding="utf-8")).body
    tables = {
        node.targets[0].id: node.value for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    extras = ast.literal_eval(tables["EXTRAS"])
    alone = ast.literal_eval(tables["WITHOUT_DEPENDENCIES"])
    for name in names:
        if name not in extras:
            sys.exit(f"tm_jax: no extra {name!r} in setup.py; choose among {', '.join(extras)}.")
        print("\n".join(extras[name] + [f"--no-deps {line}" for line in alone.get(name, [])]))
PYTHON
}

# Whether the environment $1 already holds the extras $2.
_is_ready() {
  local wanted
  [[ -x $1/bin/python && -s $1/$_STAMP ]] || return 1
  wanted="$(_wanted "$1/bin/python" "$2" 2>/dev/null)" && [[ -n $wanted ]] || return 1
  ! grep -qvxFf "$1/$_STAMP" <<<"$wanted"
}

# Makes the environment in $1 where it is missing or broken.
_make_venv() {
  local venv="$1" base
  if "$venv/bin/python" -I -c 'import pip' >/dev/null 2>&1 </dev/null; then
    return
  fi
  if "$venv/bin/python" -I -m ensurepip >/dev/null 2>&1 </dev/null; then
    return
  fi
  if [[ $venv != "$TM_JAX_ROOT/.venv" && ! -f $venv/pyvenv.cfg ]] &&
    [[ -n "$(find "$venv" -mindepth 1 -maxdepth 1 ! -name "$_LOCK" ! -name "$_LOG")" ]]; then
    _fail "$venv holds other files; TM_JAX_VENV must name a new or empty folder"
  fi
  base="$(_find_python)" || exit 1
  find "$venv" -mindepth 1 -maxdepth 1 ! -name "$_LOCK" -exec rm -rf {} +
  if ! "$base" -I -m venv "$venv" >"$venv/$_LOG" 2>&1 </dev/null; then
    _explain "cannot make the virtual environment" "$venv/$_LOG"
  fi
}

# Ends with one line that says why a step failed, from its log.
_explain() {
  local what="$1" log="$2" missing why
  missing="$(sed -n 's/.*No matching distribution found for \(.*\)/\1/p' "$log" | tail -n 1)"
  if grep -qiE 'no space left|errno 28|disk quota' "$log"; then
    why="the disk is full"
  elif grep -qiE "$_UNREACHABLE" "$log"; then
    why="the package index cannot be reached; check the network and the settings of pip"
  elif [[ -n $missing ]]; then
    why="the package index has no version of $missing for this Python"
  else
    why="$(grep -iE 'error' "$log" | tail -n 1)"
    why="${why:-$(tail -n 1 "$log")}"
  fi
  _fail "$what: $why (log: $log)"
}

# Installs the list $2 into the environment $1, with further options of pip.
_pip() {
  local venv="$1" list="$2"
  shift 2
  if ! PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip install --no-input \
    --progress-bar off --disable-pip-version-check --prefer-binary "$@" -r "$list" \
    >"$venv/$_LOG" 2>&1 </dev/null; then
    _explain "cannot install the requirements" "$venv/$_LOG"
  fi
}

# Installs the requirements and the extras $2 into the environment $1, then stamps it.
_install() {
  local venv="$1" python="$1/bin/python" wanted hash kept=''
  wanted="$(_wanted "$python" "$2")" || exit 1
  hash="${wanted%%$'\n'*}"
  # Extras of an earlier call stay good while the rest is the same.
  if grep -qxF "$hash" "$venv/$_STAMP" 2>/dev/null; then kept="$(cat "$venv/$_STAMP")"; fi
  rm -f -- "$venv/$_STAMP"
  printf 'tm_jax: installing the requirements into %s (once, some minutes)\n' "$venv" >&2
  { cat "$TM_JAX_ROOT/requirements.txt" && tail -n +2 <<<"$wanted" | sed '/^--no-deps /d'; } \
    >"$venv/$_LIST" || _fail "cannot write to $venv; is the disk full?"
  _pip "$venv" "$venv/$_LIST"
  sed -n 's/^--no-deps //p' <<<"$wanted" >"$venv/$_ALONE" ||
    _fail "cannot write to $venv; is the disk full?"
  if [[ -s $venv/$_ALONE ]]; then _pip "$venv" "$venv/$_ALONE" --no-deps; fi
  { printf '%s\n' "$wanted" "$kept" | sed '/^$/d' | sort -u >"$venv/$_STAMP.new" &&
    mv -- "$venv/$_STAMP.new" "$venv/$_STAMP"; } ||
    _fail "cannot write to $venv; is the disk full?"
}

_UNREACHABLE='connection|name resolution|network is unreachable|timed? ?out'
_UNREACHABLE+='|could not fetch url|proxyerror|sslerror|certificate'
_STAMP=tm_jax.stamp
_LOCK=tm_jax.lock
_LOG=tm_jax.log
_LIST=tm_jax.requirements.txt
_ALONE=tm_jax.without_dependencies.txt

prepare_environment() {
  local venv="${TM_JAX_VENV:-$TM_JAX_ROOT/.venv}" extras="$* ${TM_JAX_EXTRAS:-}" locker
  extras="${extras//,/ }"
  [[ $venv == /* ]] || venv="$PWD/$venv"
  if ! _is_ready "$venv" "$extras"; then
    mkdir -p -- "$venv" 2>/dev/null || _fail "cannot make the folder $venv"
    locker="$venv/bin/python"
    "$locker" -I -c '' 2>/dev/null </dev/null || locker="$(_find_python)" || exit 1
    # The lock lives as long as the descriptor, so a killed script leaves none behind.
    # Some network folders know no locks; there two scripts must not start at once.
    exec 9>"$venv/$_LOCK" || _fail "cannot write to $venv"
    "$locker" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null </dev/null || true
    if ! _is_ready "$venv" "$extras"; then
      _make_venv "$venv"
      _install "$venv" "$extras"
    fi
    exec 9>&-
  fi
  # shellcheck disable=SC2034  # For the script that sources this file.
  TM_JAX_PYTHON="$venv/bin/python"
  export PYTHONPATH="$TM_JAX_ROOT${PYTHONPATH:+:$PYTHONPATH}"
}
