#!/usr/bin/env bash
# Builds the Ascend C operators with MindSpore's custom compiler and installs them. Needs CANN; no NPU is needed to build.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
soc="ascend910b;ascend910_93"
vendor="pangu"
install="${here}/opp"
cann="${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}"
python="${PYTHON:-python3}"

usage() {
  cat <<USAGE
usage: build.sh [--soc LIST] [--vendor NAME] [--install DIR] [--cann DIR]

  --soc LIST      chips, separated by ';', of ascend910, ascend910b, ascend910_93   [${soc}]
                  (ascend910 builds from the same sources; MindSpore 2.7 and later do not document it)
  --vendor NAME   name of the package, letters, digits, '_'                         [${vendor}]
  --install DIR   where the package goes; made when it does not exist               [ascendc/opp]
  --cann DIR      CANN toolkit           [ASCEND_HOME_PATH, then ASCEND_TOOLKIT_HOME: ${cann:-not set}]

The interpreter is \$PYTHON or python3 and must have mindspore. Exit codes: 0 built, 1 the build failed, 2 something is missing or a wrong option.
USAGE
}

refuse() {
  echo "build.sh: $1" >&2
  exit 2
}

while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --soc | --vendor | --install | --cann)
      [[ $# -ge 2 ]] || refuse "$1 needs a value; see --help"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *) refuse "$1: no such option; see --help" ;;
  esac
done

[[ "${vendor}" =~ ^[A-Za-z0-9_]+$ ]] || refuse "--vendor ${vendor}: only letters, digits and '_'"
IFS=';' read -ra chips <<<"${soc}"
[[ ${#chips[@]} -gt 0 ]] || refuse "--soc is empty; use ascend910, ascend910b or ascend910_93"
for chip in "${chips[@]}"; do
  case "${chip}" in
    ascend910 | ascend910b | ascend910_93) ;;
    *) refuse "--soc ${chip}: no such chip; use ascend910, ascend910b or ascend910_93" ;;
  esac
done

missing=()
if [[ -z "${cann}" ]]; then
  missing+=("the CANN toolkit: set ASCEND_HOME_PATH (source set_env.sh of the toolkit) or give --cann")
elif [[ ! -d "${cann}" ]]; then
  missing+=("the CANN toolkit: ${cann} is no directory")
fi
for tool in cmake make g++; do
  command -v "${tool}" >/dev/null || missing+=("${tool} on PATH")
done
compiler=""
if ! command -v "${python}" >/dev/null; then
  missing+=("${python}; set PYTHON to the interpreter that has mindspore")
else
  # found without importing mindspore, which may need the device's libraries
  compiler="$("${python}" - <<'PY'
import importlib.util
import pathlib

spec = importlib.util.find_spec("mindspore")
for root in (spec.submodule_search_locations if spec else []):
    path = pathlib.Path(root) / "lib" / "plugin" / "ascend" / "custom_compiler" / "setup.py"
    if path.is_file():
        print(path)
        break
PY
  )"
  [[ -n "${compiler}" ]] || missing+=("mindspore with lib/plugin/ascend/custom_compiler for ${python} (2.3 or later); set PYTHON to another interpreter")
fi
if [[ ${#missing[@]} -gt 0 ]]; then
  echo "build.sh: cannot build the Ascend C operators here; missing:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 2
fi

mkdir -p "${install}"
install="$(cd "${install}" && pwd)"

# The custom compiler writes beside its own setup.py, which may be read-only or in use by another build: work on a copy.
work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT
cp "$(dirname "${compiler}")/setup.py" "$(dirname "${compiler}")/start.sh" "${work}/"
cd "${work}"
status=0
"${python}" setup.py -o "${here}/op_host" -k "${here}/op_kernel" --soc_version "${soc}" --vendor_name "${vendor}" \
  --ascend_cann_package_path "${cann}" --install_path "${install}" || status=1
if [[ ${status} -ne 0 || ! -d "${install}/vendors/${vendor}" ]]; then
  for log in build.log install.log; do
    [[ -f "${log}" ]] && tail -n 40 "${log}" >&2
  done
  echo "build.sh: the build failed; the end of its logs stands above" >&2
  exit 1
fi
echo "built for ${soc}; before starting Python:"
echo "  export ASCEND_CUSTOM_OPP_PATH=${install}/vendors/${vendor}\${ASCEND_CUSTOM_OPP_PATH:+:\$ASCEND_CUSTOM_OPP_PATH}"
