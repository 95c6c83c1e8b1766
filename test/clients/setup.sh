#!/usr/bin/env bash
# setup.sh LANGUAGE... puts the test clients of languages in place, each by its own package manager, in .cache/clients.
# It leaves alone what is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly cache=../../.cache/clients

say() { printf 'setup: %s\n' "$*" >&2; }

# need COMMAND WHY fails when a command is missing.
need() { command -v "$1" >/dev/null || { say "$1 is missing ($2): install it with this system's package manager"; exit 1; }; }

# setup_LANGUAGE FOLDER makes the client of a language, out of a copy of its sources.
setup_go() { need go "the test client in Go"; go build -o "$1/client" ./go; }

setup_python() {
  need python3 "the test client in Python"
  python3 -m venv "$1/venv"
  "$1/venv/bin/pip" --quiet --disable-pip-version-check install --requirement "$1/requirements.txt"
}

setup_java() {
  need mvn "the test client in Java"
  mvn --quiet --batch-mode --file "$1/pom.xml" compile
}

setup_node() {
  need npm "the test client in Node.js"
  (cd "$1" && npm ci --loglevel=error --ignore-scripts)
}

for language in "$@"; do
  folder=$cache/$language
  # The sum of what a client is made from says whether it has to be made again.
  sum=$(find "$language" backend go.mod go.sum setup.sh -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  if [ "$(cat "$folder/sum" 2>/dev/null)" != "$sum" ]; then
    say "making the client in $language"
    rm -rf "$folder"
    mkdir -p "$cache"
    cp -R "$language" "$folder"
    "setup_$language" "$folder"
    echo "$sum" >"$folder/sum"
  fi
done
