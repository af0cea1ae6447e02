#!/usr/bin/env bash
# Trains the arms of recipes/math-7b, evaluates them on the benchmarks and collects the results.
# Stages, in order: cost data train evaluate result.
#
#   reproduce.sh [--dry-run] [STAGE ...]     all stages by default
#
# A finished stage is not repeated, and an interrupted run resumes, so the script can be killed and called again.
# Environment variables and their defaults:
#   OUT       output directory                           runs/math-7b
#   MODEL     directory or Hub model ID                  Qwen/Qwen2.5-Math-7B
#   GSM8K     file or Hub dataset ID, rows {question, answer}    openai/gsm8k:main
#   MATH      file or Hub dataset ID, rows {problem, solution}   no default, see README.md
#   ARMS      some of gvpo grpo dr_grpo                  all three
#   SEEDS     values of run.seed                         0
#   STEPS     value of train.steps                       100
#   SETTINGS  more section.key=value for each run        none
#   BENCHMARKS   names for `gvpo eval --benchmark`       the paper's five
#   BENCHMARK_DATA  directory or NAME=FILE with their rows   the Hub
#   TEMPLATE  template of the benchmarks' prompts        auto
#   EVAL      more arguments for `gvpo eval`             none
#   GVPO, PYTHON  commands                               gvpo, python
#   TOKENS_PER_SECOND  measured speed, for `cost`        none
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

OUT="${OUT:-runs/math-7b}"
MODEL="${MODEL:-Qwen/Qwen2.5-Math-7B}"
GSM8K="${GSM8K:-openai/gsm8k:main}"
MATH="${MATH:-}"
STEPS="${STEPS:-100}"
read -r -a ARMS <<<"${ARMS:-gvpo grpo dr_grpo}"
read -r -a SEEDS <<<"${SEEDS:-0}"
read -r -a SETTINGS <<<"${SETTINGS:-}"
BENCHMARKS="${BENCHMARKS:-aime24,amc,math500,minerva,olympiadbench}"
read -r -a BENCHMARK_DATA <<<"${BENCHMARK_DATA:-}"
TEMPLATE="${TEMPLATE:-auto}"
read -r -a EVAL <<<"${EVAL:-}"
read -r -a GVPO <<<"${GVPO:-gvpo}"
read -r -a PYTHON <<<"${PYTHON:-python}"

dry=""
say() { printf '%s\n' "$*"; }
fail() { printf 'reproduce.sh: %s\n' "$*" >&2; exit 2; }

run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ -n "$dry" ]] || "$@"
}

# tokens = arms x seeds x steps x 1024 prompts x 4 completions x at most 1024 tokens
# arithmetic = 12 x parameters x tokens: 2 to sample, 2 for the reference, 2 to score, 6 to push
# hours = tokens / tokens per second
cost() {
  local runs=$((${#ARMS[@]} * ${#SEEDS[@]})) parameters=7615616512
  local tokens=$((runs * STEPS * 1024 * 4 * 1024))
  say "cost: $runs runs x $STEPS steps, at most $tokens completion tokens"
  say "cost: at most $((12 * parameters / 1000000 * tokens / 1000000000)) PFLOP (12 x parameters x tokens; prompts aside)"
  say "cost: $(((16 * parameters + 500000000) / 1000000000)) GB for weights, gradients and optimizer state (16 bytes per parameter), before activations"
  if [[ -n "${TOKENS_PER_SECOND:-}" ]]; then
    say "cost: at most $((tokens / TOKENS_PER_SECOND / 3600)) device hours at $TOKENS_PER_SECOND tokens per second"
  else
    say "cost: for hours, run two steps (STEPS=2), read tokens/per_second in metrics.jsonl and set TOKENS_PER_SECOND"
  fi
}

data() {
  if [[ -f "$OUT/data/train.jsonl" && -f "$OUT/data/held-out.jsonl" ]]; then
    say "data: $OUT/data exists"
    return
  fi
  if [[ -z "$MATH" ]]; then
    [[ -n "$dry" ]] || fail "set MATH to a file or Hub dataset ID with MATH's training problems (README.md says why there is no default)"
    MATH="MATH_FILE_OR_HUB_ID"
  fi
  run "${PYTHON[@]}" "$here/data.py" --gsm8k "$GSM8K" --math "$MATH" --out "$OUT/data"
}

recipe_of() {
  case "$1" in
    gvpo) say "$here/recipe.toml" ;;
    grpo | dr_grpo) say "$here/$1.toml" ;;
    *) fail "there is no arm '$1'; ARMS may contain gvpo grpo dr_grpo" ;;
  esac
}

train() {
  local arm seed recipe
  for arm in "${ARMS[@]}"; do
    recipe="$(recipe_of "$arm")"
    for seed in "${SEEDS[@]}"; do
      train_one "$OUT/$arm-seed-$seed" "$recipe" "$seed"
    done
  done
}

train_one() {
  local directory="$1" recipe="$2" seed="$3" resume=()
  if [[ -f "$directory/summary.json" ]]; then
    say "train: $directory has finished"
    return
  fi
  if [[ -f "$directory/config.json" ]]; then
    resume=(--resume)
  fi
  run "${GVPO[@]}" train "$recipe" "run.dir=$directory" "run.seed=$seed" "model.path=$MODEL" "train.steps=$STEPS" \
    "data.train=$OUT/data/train.jsonl" "data.eval=$OUT/data/held-out.jsonl" \
    ${SETTINGS[@]+"${SETTINGS[@]}"} ${resume[@]+"${resume[@]}"}
}

result() {
  run "${PYTHON[@]}" "$here/result.py" "$OUT"
}

# The untrained model is first, so that the table has every difference to it; finished responses are not sampled again.
evaluate() {
  local models=("$MODEL") options=() arm seed place
  for arm in "${ARMS[@]}"; do
    for seed in "${SEEDS[@]}"; do
      models+=("$OUT/$arm-seed-$seed")
    done
  done
  for place in ${BENCHMARK_DATA[@]+"${BENCHMARK_DATA[@]}"}; do
    options+=(--data "$place")
  done
  if [[ -d "$OUT/eval" ]]; then
    options+=(--resume)
  fi
  run "${GVPO[@]}" eval "${models[@]}" --benchmark "$BENCHMARKS" --template "$TEMPLATE" --out "$OUT/eval" \
    ${options[@]+"${options[@]}"} ${EVAL[@]+"${EVAL[@]}"}
}

stages=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry=yes ;;
    cost | data | train | evaluate | result) stages+=("$word") ;;
    *) fail "there is no stage '$word'; stages are cost data train evaluate result" ;;
  esac
done
if [[ ${#stages[@]} -eq 0 ]]; then
  stages=(cost data train evaluate result)
fi
for stage in "${stages[@]}"; do
  "$stage"
done
