# Sourced by demo.sh, gpu.sh and test.sh: makes .venv with torch, this package and what the example needs, or brings it
# up to date.
#
#   FRD_PYTHON   the interpreter to make .venv with (default: the first of python3, python3.14 ... that is >= 3.10);
#                gpu.sh does without .venv where it is set
#   FRD_TORCH    the torch to install where .venv has none, as pip takes it: "torch==2.14.1", "torch --index-url ..."
#                (default: torch==2.13.0; where pip is offered a CPU-only build of that version it takes it, which
#                spares a download of several gigabytes)
#   FRD_EXTRAS   the extras of pyproject.toml to install (default: test)
#
# A second run changes nothing unless the C++ sources or the build's settings did: it takes a second.

say() { printf '\n==> %s\n' "$*"; }
fail() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${FRD_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.10 found${FRD_PYTHON:+ ($FRD_PYTHON)}; name one: FRD_PYTHON=/path/to/python bash $0"
}

make_venv() {
  [[ -x .venv/bin/python ]] && return
  local python
  python=$(find_python)
  say "making .venv with $("$python" --version)"
  "$python" -m venv .venv || fail "$python cannot make a virtual environment (Debian, Ubuntu: install python3-venv)"
}

torch_version() {  # without the seconds that importing torch takes
  .venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))'
}

install_torch() {
  torch_version >/dev/null 2>&1 && return
  local requirement=${FRD_TORCH:-torch==2.13.0}
  say "installing $requirement (only this once; a CUDA build is several gigabytes, FRD_TORCH chooses another)"
  # shellcheck disable=SC2086  # the requirement may bring options of pip with it
  .venv/bin/python -m pip install --quiet $requirement numpy
}

check_compiler() {
  echo 'int main() {}' | "${CXX:-c++}" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null ||
    fail "building from source needs a C++20 compiler as ${CXX:-c++}: g++ 11 or later (Debian, Ubuntu: install g++)"
  local headers
  headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -e $headers/Python.h ]] ||
    fail "building from source needs Python's headers in $headers (Debian, Ubuntu: install python3-dev)"
}

example=examples/language_model/requirements.txt

# What was installed, and what the library was built from: a change in any of it means installing anew.
fingerprint() {
  find csrc _build setup.py pyproject.toml "$example" -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 cksum
  .venv/bin/python --version
  torch_version
  echo "${FRD_EXTRAS:-test} ${FRD_EXTRA_CXXFLAGS:-} ${FRD_CUDA:-}"
}

install_package() {
  local stamp=.venv/fused-rnn-dropout.installed now
  now=$(fingerprint)
  if [[ -f $stamp && $now == "$(<"$stamp")" ]] && compgen -G 'fused_rnn_dropout/_C.*' >/dev/null; then
    return
  fi
  check_compiler
  say "building and installing fused-rnn-dropout against torch $(torch_version)"
  .venv/bin/python -m pip install --quiet --editable ".[${FRD_EXTRAS:-test}]" --requirement "$example"
  printf '%s\n' "$now" >"$stamp"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
make_venv
install_torch
install_package
