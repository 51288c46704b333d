#!/usr/bin/env bash
# Builds the fuzz targets on stable Rust (no cargo-fuzz, no nightly) and runs each for some seconds.
#   fuzz/run.sh [SECONDS] [TARGET...]     default: 20 seconds, all targets
# Seeds come from attacks/ and fuzz/seeds/; what is found new is kept in fuzz/corpus/. A crash, a hang of 20 s or more
# than 1 GiB fails the run and leaves the input in fuzz/corpus/TARGET-crash-*.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-20}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(gguf safetensors tokenizer_json template disk)

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
# What libFuzzer needs from the compiler: counters per edge, their table, and the operands of comparisons.
# --target keeps the flags away from build scripts and macros.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 ${RUSTFLAGS:-}"
cargo build --release --target "$host"

seeds() {
    case $1 in
        gguf) find ../attacks/gguf ../attacks/control -name '*.gguf' ;;
        safetensors) find ../attacks/safetensors ../attacks/control -name '*.safetensors' ;;
        *) find "seeds/$1" -type f ;;
    esac
}

# The size cap keeps each input cheap; what a parser does wrong it does wrong in a few kilobytes.
declare -A max_bytes=([gguf]=4096 [safetensors]=4096 [tokenizer_json]=8192 [template]=4096 [disk]=4096)

failed=0
for target in "${targets[@]}"; do
    work=$(mktemp -d)
    mkdir -p "corpus/$target" "$work/seeds"
    # Flat names: cases in folders share file names.
    seeds "$target" | while read -r file; do cp "$file" "$work/seeds/$(echo "$file" | tr / _)"; done
    printf '== %s: %s seeds, %s s\n' "$target" "$(find "$work/seeds" -type f | wc -l)" "$seconds"
    if "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -max_len="${max_bytes[$target]}" \
        -timeout=20 -rss_limit_mb=1024 -artifact_prefix="corpus/$target-" -print_final_stats=1 \
        "corpus/$target" "$work/seeds" >"$work/log" 2>&1; then
        grep -E '^stat::(number_of_executed|average_exec|new_units|slowest|peak)' "$work/log"
    else
        failed=1
        grep -vE '# Uses:|^#[0-9]' "$work/log" | tail -n 60
        echo "fuzz target $target failed; its input is in fuzz/corpus"
    fi
    rm -rf "$work"
done
exit $failed
