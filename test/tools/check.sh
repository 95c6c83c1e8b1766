#!/usr/bin/env bash
# Checks everything that needs no network namespace: formatting, linters, the architecture's laws, tidy modules, generated
# code. It runs all of them before it fails. .golangci.yml says which linters, and why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

failed=()

# check NAME COMMAND... runs a check and remembers whether it failed.
check() {
  local name=$1 start=$SECONDS
  shift
  if "$@"; then
    printf 'check: %-40s ok, %d s\n' "$name" $((SECONDS - start))
  else
    printf 'check: %-40s FAILED\n' "$name"
    failed+=("$name")
  fi
}

formatted() {
  local files
  files=$(gofmt -l cmd translate cache server test)
  [ -z "$files" ] || { printf 'not formatted, run gofmt -w: %s\n' $files && false; }
}

# A module of its own holds what the program itself must not depend on.
mapfile -t modules < <(find . -name go.mod -not -path './.cache/*' -printf '%h\n' | sort)

# The modules that only pin other projects' programs have next to no code, and seeing it would compile those projects.
# golangci-lint's own is one of them.
code_modules=()
for module in "${modules[@]}"; do
  case $module in ./test/e2e/* | ./test/tools/lint) ;; *) code_modules+=("$module") ;; esac
done

lint=$(go -C test/tools/lint tool -n golangci-lint)

in_module() { (cd "$1" && shift && "$@"); }

check gofmt formatted
for module in "${code_modules[@]}"; do
  check "lint $module" in_module "$module" "$lint" run ./...
done
for module in "${modules[@]}"; do
  check "tidy $module" in_module "$module" go mod tidy -diff
done
check 'generated code' make --no-print-directory generate PROTOGEN_FLAGS=-check
check 'test/arch' go test ./test/arch

if ((${#failed[@]})); then
  printf 'check: FAILED: %s\n' "$(IFS=,; echo "${failed[*]}")"
  exit 1
fi
