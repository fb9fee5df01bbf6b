#!/usr/bin/env bash
# All checks and measurements that need a GPU: bench/gpu.sh [WHEEL] [--cpu]
#
# Takes the operators from WHEEL (a saltlm wheel with both libraries), or builds them against the installed torch with the
# nvcc of this machine. Rust is not needed. First the operators are compared with the reference and timed; then the
# comparisons run again under compute-sanitizer, if it is installed. Results: gpu.json, gpu.md (the section for RESULTS.md)
# and logs in ${OUT:-build/gpu}. PYTHON is the interpreter (default: python3). --cpu runs bench/gpu.py on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
out=${OUT:-build/gpu}
mkdir -p "$out"
wheel="" options=()
for argument in "$@"; do
  case $argument in
    *.whl) wheel=$argument ;;
    *) options+=("$argument") ;;
  esac
done

if [ -n "$wheel" ]; then
  rm -rf build/gpu-package
  "$PYTHON" -m zipfile -e "$wheel" build/gpu-package
  package=build/gpu-package
else
  SALTLM_CUDA_ARCHS=${SALTLM_CUDA_ARCHS:-$("$PYTHON" -c '
import torch
print("%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "80;90;90+PTX")')} \
    "$PYTHON" cuda_ext/build_ops.py 2>&1 | tee "$out/build.log"
  package=python
fi
cat "$package/saltlm/lib/build.json"
if command -v nvidia-smi >/dev/null; then nvidia-smi | tee "$out/nvidia-smi.txt"; fi

status=0
"$PYTHON" bench/gpu.py --package "$package" --out "$out" "${options[@]}" 2>&1 | tee "$out/gpu.log" || status=$?
if command -v compute-sanitizer >/dev/null && [[ " ${options[*]-} " != *" --cpu "* ]]; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" bench/gpu.py --package "$package" \
      --out "$out/$tool" --checks-only >"$out/$tool.log" 2>&1 || { status=$?; tail -n 30 "$out/$tool.log"; }
    tail -n 1 "$out/$tool.log"
  done
fi
exit "$status"
