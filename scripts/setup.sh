#!/usr/bin/env bash
# Makes .venv with mtkit in it; does nothing where that is done. `scripts/setup.sh dev` adds what tests and checks need.
# PYTHON names the interpreter to use; without it the newest on the PATH is taken.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
venv="$PWD/.venv"

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.14 python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    if [[ $candidate == "${PYTHON:-}" ]]; then
      say "scripts/setup.sh: error: PYTHON=$PYTHON is not Python 3.11 or later"
      return 1
    fi
  done
  say "scripts/setup.sh: error: found no Python 3.11 or later; install one, or name one: PYTHON=/path/to/python3 $0"
  return 1
}

# pip's own script names the place where the environment was made, so one that was moved is noticed.
works() { grep -qsF "$venv/bin/" "$venv/bin/pip" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

if ! works; then
  python="$(find_python)"
  say "Making .venv with $("$python" --version) …"
  if ! "$python" -m venv --clear "$venv" >/dev/null 2>&1; then
    say "scripts/setup.sh: error: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"
    exit 1
  fi
fi

# The stamp is written last, so an installation that was interrupted is repeated. What serves dev serves all.
wanted="$(cat pyproject.toml scripts/constraints.txt | "$venv/bin/python" -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
stamp="$venv/installed${extras:+-$extras}"
if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
  say "Installing mtkit${extras:+ for $extras}; this takes minutes the first time …"
  rm -f "$venv"/installed*
  install() { "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile "$@"; }
  # The pip that Python 3.11 brings looks at each file of an index for a third of the whole time. An old one serves too.
  install --upgrade --constraint scripts/constraints.txt pip || true
  if [[ $extras == dev ]]; then
    # Packages are unpacked on one core, so two calls share them. What they could not install, the last call installs, or
    # says why it cannot.
    pins="$(grep -v -e '^#' -e '^pip=' scripts/constraints.txt)"
    grep -E '^(torch=|[a-i])' <<<"$pins" | install --no-deps --requirement /dev/stdin 2>/dev/null &
    grep -vE '^(torch=|[a-i])' <<<"$pins" | install --no-deps --requirement /dev/stdin 2>/dev/null || true
    wait
    # Python compiles a module when it is first imported. That is done here once, while the last call of pip takes the
    # other core, and not in each process of the tests.
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c \
      'import torch._dynamo, transformers' 2>/dev/null &
  fi
  install --constraint scripts/constraints.txt --editable ".${extras:+[$extras]}"
  wait
  echo "$wanted" >"$venv/installed"
  echo "$wanted" >"$stamp"
fi
